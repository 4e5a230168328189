//! Metrics of a node: one Prometheus registry, in OpenMetrics text.
//!
//! They are totals and levels of the node itself. Threat: a time series with a fine grain would show single leases to
//! whoever reads it; so nothing is labelled by lease or peer, and the listener is on loopback only.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// Where the answers come from, at each request.
#[derive(Clone)]
pub struct Source {
    /// The metrics as OpenMetrics text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Why the node is not ready, a line each; nothing where it is.
    pub missing: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

/// Scrapes at once; more wait in the backlog of the listener.
const MAX_CONNECTIONS: usize = 8;

/// A scraper that takes longer to send its request is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// One request and its answer take no longer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The registry as OpenMetrics text.
#[must_use]
pub fn text(registry: &prometheus_client::registry::Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)
        .expect("writing to a string does not fail");
    text
}

/// Serves `GET /metrics`, `/healthz` (the node answers) and `/readyz` (it does all that it was told to do, or 503 and why not)
/// until `stop` is cancelled.
pub async fn serve(listener: TcpListener, source: Source, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accepting = async {
        loop {
            let slot = room.clone().acquire_owned().await;
            // A connection that broke before it was accepted is its client's matter.
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let source = source.clone();
            let stop = stop.clone();
            tokio::spawn(async move {
                let _slot = slot;
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .keep_alive(false)
                    .serve_connection(
                        TokioIo::new(stream),
                        service_fn(|request| {
                            let answer = answer(&request, &source);
                            async { Ok::<_, Infallible>(answer) }
                        }),
                    );
                tokio::select! {
                    _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
}

fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const TEXT: &str = "text/plain; charset=utf-8";
    const ONLY: &str = "/metrics, /healthz and /readyz are here, for GET\n";
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, OPEN_METRICS, (source.metrics)()),
        (&Method::GET, "/healthz") => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        (&Method::GET, "/readyz") => match (source.missing)() {
            missing if missing.is_empty() => (StatusCode::OK, TEXT, "ready\n".to_owned()),
            missing => (
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                missing.join("\n") + "\n",
            ),
        },
        (_, "/metrics" | "/healthz" | "/readyz") => {
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, ONLY.to_owned())
        }
        _ => (StatusCode::NOT_FOUND, TEXT, ONLY.to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use prometheus_client::{metrics::counter::Counter, registry::Registry};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn asked(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connects");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        answer
    }

    #[tokio::test]
    async fn metrics_are_served_at_their_path_only_and_until_stopped() {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        registry.register("souk_tests", "How often this was tested", counter.clone());
        counter.inc_by(3);
        let lacking = Arc::new(Mutex::new(Vec::new()));
        let missing = Arc::clone(&lacking);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(
            listener,
            Source {
                metrics: Arc::new(move || text(&registry)),
                missing: Arc::new(move || missing.lock().expect("whole").clone()),
            },
            stop.clone(),
        ));

        let found = asked(address, "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(found.starts_with("HTTP/1.1 200"), "{found}");
        assert!(found.contains("souk_tests_total 3\n# EOF\n"), "{found}");
        let missing = asked(address, "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
        let wrong = asked(address, "POST /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(wrong.starts_with("HTTP/1.1 405"), "{wrong}");
        let health = asked(address, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(health.starts_with("HTTP/1.1 200"), "{health}");
        let ready = "GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let found = asked(address, ready).await;
        assert!(found.starts_with("HTTP/1.1 200"), "{found}");
        *lacking.lock().expect("whole") = vec!["no card".to_owned(), "no peer".to_owned()];
        let found = asked(address, ready).await;
        assert!(found.starts_with("HTTP/1.1 503"), "{found}");
        assert!(found.ends_with("\r\n\r\nno card\nno peer\n"), "{found}");
        let garbage = asked(address, "\0\0\0\r\n\r\n").await;
        assert!(garbage.starts_with("HTTP/1.1 400"), "{garbage}");

        stop.cancel();
        server.await.expect("ends");
    }
}
