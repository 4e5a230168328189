//! One `GET` over HTTP/1.1.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::plan::{Request, Response};

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is not one of `http://host:port`.
    #[error("{address:?} is no address: write http://host:port")]
    Address {
        /// The address.
        address: String,
    },
    /// It took too long.
    #[error("no answer within {within_s} s")]
    TooSlow {
        /// How long it may take, in seconds.
        within_s: u64,
    },
    /// The connection failed.
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// The exchange failed.
    #[error("the exchange failed")]
    Exchange(#[source] hyper::Error),
    /// The service refused.
    #[error("the service answered with status {status}")]
    Status {
        /// Its status.
        status: u16,
    },
    /// The response lacks a header that is needed.
    #[error("the response has no header {name}")]
    NoHeader {
        /// Its name.
        name: &'static str,
    },
    /// The body is larger than any that makes sense.
    #[error("the body has more than {max} bytes")]
    TooLarge {
        /// The bound.
        max: usize,
    },
}

/// Asks the service at `base`, and waits no longer than `within`.
pub(super) async fn get(
    base: &str,
    request: &Request,
    within: Duration,
) -> Result<Response, HttpError> {
    match tokio::time::timeout(within, exchange(base, request)).await {
        Ok(response) => response,
        Err(_) => Err(HttpError::TooSlow {
            within_s: within.as_secs(),
        }),
    }
}

async fn exchange(base: &str, request: &Request) -> Result<Response, HttpError> {
    let no_address = || HttpError::Address {
        address: base.to_owned(),
    };
    let uri: Uri = base.parse().map_err(|_| no_address())?;
    let authority = match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) => authority,
        _ => return Err(no_address()),
    };
    let prefix = uri.path().trim_end_matches('/');
    let path: Uri = format!("{prefix}{}", request.path)
        .parse()
        .map_err(|_| no_address())?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| no_address())?;
    let port = authority.port_u16().unwrap_or(80);
    let name = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((name, port))
        .await
        .map_err(HttpError::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(HttpError::Exchange)?;
    let asked = hyper::Request::builder()
        .uri(path)
        .header(HOST, host)
        .body(Empty::<Bytes>::new())
        .map_err(|_| no_address())?;
    let talk = async {
        let response = sender
            .send_request(asked)
            .await
            .map_err(HttpError::Exchange)?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(HttpError::Status {
                status: head.status.as_u16(),
            });
        }
        let header = request.header.map(|name| {
            let value = head.headers.get(name);
            let text = value.and_then(|value| value.to_str().ok());
            text.map(str::to_owned).ok_or(HttpError::NoHeader { name })
        });
        let max = request.max_bytes;
        let body = Limited::new(body, max).collect().await.map_err(|error| {
            match error.downcast::<hyper::Error>() {
                Ok(error) => HttpError::Exchange(*error),
                Err(_) => HttpError::TooLarge { max },
            }
        })?;
        Ok(Response {
            header: header.transpose()?,
            body: body.to_bytes().to_vec(),
        })
    };
    // The connection moves only while it is polled; it ends with the exchange.
    tokio::pin!(talk);
    tokio::select! {
        response = &mut talk => response,
        ended = connection => match ended {
            Ok(()) => talk.await,
            Err(error) => Err(HttpError::Exchange(error)),
        },
    }
}
