//! Who is registered with a relay and what runs through it, as a core without I/O.
//!
//! Threats: strangers who register or connect without end, so there is a bound for each party and for all together; one provider
//! that takes away another's registration, or loses its own to a stream that died late.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use crate::net::streams::MAX_INBOUND_SPLICES;

use super::TokenHash;

/// Providers registered with one relay.
pub(super) const MAX_PROVIDERS: usize = 256;

/// Tokens of one provider at one relay: one for each of its leases. With [`MAX_PROVIDERS`] that is 4 MiB at worst.
pub(super) const MAX_TOKENS: usize = 256;

/// Sessions of one relay at a time; with two buffers of 16 KiB each they take 16 MiB at worst.
pub(super) const MAX_SESSIONS: usize = 512;

/// Sessions to one provider: as many as its one connection has places for.
pub(super) const MAX_SESSIONS_OF_PROVIDER: usize = MAX_INBOUND_SPLICES;

/// Sessions of one client identity: ssh, scp and a forwarded port side by side.
pub(super) const MAX_SESSIONS_OF_CLIENT: usize = 8;

/// Sessions with one token, whoever brings it: a token that got around takes no more than this from the provider's others. It is what
/// one client may have, for each `souk ssh` is a client of its own.
pub(super) const MAX_SESSIONS_OF_TOKEN: usize = MAX_SESSIONS_OF_CLIENT;

/// Longest life of a token; a lease that lives longer registers it again.
pub(super) const MAX_TOKEN_LIFE: Duration = Duration::from_secs(31 * 24 * 3600);

/// What the relay decides about a token or a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Granted,
    /// No such token.
    Unknown,
    /// A bound was reached.
    Full,
}

/// The registry.
#[derive(Debug, Default)]
pub(super) struct Registry {
    providers: HashMap<PeerId, Provider>,
    clients: HashMap<PeerId, usize>,
    /// Apart from the tokens, which may be withdrawn and registered again while sessions run.
    of_token: HashMap<(PeerId, TokenHash), usize>,
    sessions: usize,
}

#[derive(Debug)]
struct Provider {
    // A provider that reconnects has a new stream before the old one is found dead; the older must not take the newer away.
    stream: u64,
    /// While it is, the provider stays known, with tokens or without: it registers its next ones over it.
    stream_open: bool,
    tokens: HashMap<TokenHash, Instant>,
    sessions: usize,
}

impl Registry {
    /// A provider opened registration stream number `stream`; its tokens follow.
    pub(super) fn handle_registered(&mut self, provider: PeerId, stream: u64) -> Admission {
        if self.providers.len() >= MAX_PROVIDERS && !self.providers.contains_key(&provider) {
            return Admission::Full;
        }
        let entry = self.providers.entry(provider).or_insert(Provider {
            stream,
            stream_open: true,
            tokens: HashMap::new(),
            sessions: 0,
        });
        entry.stream = stream;
        entry.stream_open = true;
        entry.tokens.clear();
        Admission::Granted
    }

    /// Adds or renews a token.
    pub(super) fn handle_add(
        &mut self,
        provider: &PeerId,
        hash: TokenHash,
        lifetime: Duration,
        now: Instant,
    ) -> Admission {
        let Some(entry) = self.providers.get_mut(provider) else {
            return Admission::Unknown;
        };
        if entry.tokens.len() >= MAX_TOKENS {
            entry.tokens.retain(|_, expires| now < *expires);
        }
        if entry.tokens.len() >= MAX_TOKENS && !entry.tokens.contains_key(&hash) {
            return Admission::Full;
        }
        entry
            .tokens
            .insert(hash, now + lifetime.min(MAX_TOKEN_LIFE));
        Admission::Granted
    }

    /// Withdraws a token; sessions that run go on.
    pub(super) fn handle_remove(&mut self, provider: &PeerId, hash: &TokenHash) {
        if let Some(entry) = self.providers.get_mut(provider) {
            entry.tokens.remove(hash);
        }
    }

    /// Registration stream number `stream` has ended.
    pub(super) fn handle_gone(&mut self, provider: &PeerId, stream: u64) {
        if let Some(entry) = self.providers.get_mut(provider)
            && entry.stream == stream
        {
            entry.stream_open = false;
            entry.tokens.clear();
            self.forget_if_unused(provider);
        }
    }

    /// A client asks for a session; one that is granted must be given to [`Self::handle_session_end`].
    pub(super) fn handle_connect(
        &mut self,
        client: PeerId,
        provider: &PeerId,
        hash: &TokenHash,
        now: Instant,
    ) -> Admission {
        let Some(entry) = self.providers.get_mut(provider) else {
            return Admission::Unknown;
        };
        let expires = entry.tokens.get(hash);
        if expires.is_none_or(|expires| now >= *expires) {
            return Admission::Unknown;
        }
        let of_client = self.clients.get(&client).copied().unwrap_or(0);
        let of_token = self.of_token.entry((*provider, *hash)).or_default();
        if self.sessions >= MAX_SESSIONS
            || entry.sessions >= MAX_SESSIONS_OF_PROVIDER
            || of_client >= MAX_SESSIONS_OF_CLIENT
            || *of_token >= MAX_SESSIONS_OF_TOKEN
        {
            if *of_token == 0 {
                self.of_token.remove(&(*provider, *hash));
            }
            return Admission::Full;
        }
        *of_token += 1;
        self.sessions += 1;
        entry.sessions += 1;
        self.clients.insert(client, of_client + 1);
        Admission::Granted
    }

    /// A granted session is over.
    pub(super) fn handle_session_end(
        &mut self,
        client: &PeerId,
        provider: &PeerId,
        hash: &TokenHash,
    ) {
        self.sessions -= 1;
        let token = (*provider, *hash);
        if let Some(count) = self.of_token.get_mut(&token) {
            *count -= 1;
            if *count == 0 {
                self.of_token.remove(&token);
            }
        }
        if let Some(count) = self.clients.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(client);
            }
        }
        if let Some(entry) = self.providers.get_mut(provider) {
            entry.sessions -= 1;
            self.forget_if_unused(provider);
        }
    }

    // Kept while its stream is open, and while sessions run, so that their count stays right if the provider comes back.
    fn forget_if_unused(&mut self, provider: &PeerId) {
        if self
            .providers
            .get(provider)
            .is_some_and(|entry| !entry.stream_open && entry.sessions == 0)
        {
            self.providers.remove(provider);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn hash(n: usize) -> TokenHash {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        TokenHash(bytes)
    }

    struct World {
        registry: Registry,
        provider: PeerId,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self {
                registry: Registry::default(),
                provider: PeerId::random(),
                now: Instant::now(),
            };
            world.registry.handle_registered(world.provider, 1);
            assert_eq!(world.add(0), Admission::Granted);
            world
        }

        fn add(&mut self, n: usize) -> Admission {
            self.registry
                .handle_add(&self.provider, hash(n), HOUR, self.now)
        }

        fn connect(&mut self, client: PeerId, n: usize) -> Admission {
            self.registry
                .handle_connect(client, &self.provider, &hash(n), self.now)
        }
    }

    #[test]
    fn only_a_token_that_is_registered_and_alive_connects() {
        let (mut world, client) = (World::new(), PeerId::random());
        assert_eq!(world.connect(client, 1), Admission::Unknown);
        assert_eq!(world.connect(client, 0), Admission::Granted);
        world.now += HOUR;
        assert_eq!(world.connect(client, 0), Admission::Unknown);
        world.add(0);
        let provider = world.provider;
        world.registry.handle_remove(&provider, &hash(0));
        assert_eq!(world.connect(client, 0), Admission::Unknown);
    }

    #[test]
    fn one_client_and_one_provider_have_their_share_and_get_it_back() {
        let mut world = World::new();
        let greedy = PeerId::random();
        for _ in 0..MAX_SESSIONS_OF_CLIENT {
            assert_eq!(world.connect(greedy, 0), Admission::Granted);
        }
        assert_eq!(world.connect(greedy, 0), Admission::Full);
        for session in MAX_SESSIONS_OF_CLIENT..MAX_SESSIONS_OF_PROVIDER {
            let token = session / MAX_SESSIONS_OF_TOKEN;
            world.add(token);
            let admission = world.connect(PeerId::random(), token);
            assert_eq!(admission, Admission::Granted);
        }
        let fresh = MAX_SESSIONS_OF_PROVIDER;
        world.add(fresh);
        assert_eq!(world.connect(PeerId::random(), fresh), Admission::Full);
        let provider = world.provider;
        world
            .registry
            .handle_session_end(&greedy, &provider, &hash(0));
        assert_eq!(world.connect(greedy, 0), Admission::Granted);
    }

    #[test]
    fn a_token_that_got_around_takes_nothing_from_the_others_of_its_provider() {
        let mut world = World::new();
        world.add(1);
        for _ in 0..MAX_SESSIONS_OF_TOKEN {
            assert_eq!(world.connect(PeerId::random(), 0), Admission::Granted);
        }
        assert_eq!(world.connect(PeerId::random(), 0), Admission::Full);
        // Withdrawn and registered again, it still has its sessions.
        let provider = world.provider;
        world.registry.handle_remove(&provider, &hash(0));
        world.add(0);
        assert_eq!(world.connect(PeerId::random(), 0), Admission::Full);
        assert_eq!(world.connect(PeerId::random(), 1), Admission::Granted);
    }

    #[test]
    fn an_old_stream_that_dies_late_takes_nothing_away() {
        let mut world = World::new();
        let provider = world.provider;
        world.registry.handle_registered(provider, 2);
        world.add(0);
        world.registry.handle_gone(&provider, 1);
        assert_eq!(world.connect(PeerId::random(), 0), Admission::Granted);
        world.registry.handle_gone(&provider, 2);
        assert_eq!(world.connect(PeerId::random(), 0), Admission::Unknown);
    }

    #[test]
    fn a_provider_without_a_lease_for_a_while_registers_the_next_over_the_same_stream() {
        let (mut world, client) = (World::new(), PeerId::random());
        let provider = world.provider;
        world.connect(client, 0);
        world.registry.handle_remove(&provider, &hash(0));
        world
            .registry
            .handle_session_end(&client, &provider, &hash(0));
        assert_eq!(world.add(1), Admission::Granted);
        assert_eq!(world.connect(client, 1), Admission::Granted);
    }

    #[test]
    fn strangers_cannot_grow_the_registry() {
        let mut world = World::new();
        for n in 1..MAX_TOKENS {
            assert_eq!(world.add(n), Admission::Granted);
        }
        assert_eq!(world.add(MAX_TOKENS), Admission::Full);
        for _ in 1..MAX_PROVIDERS {
            let admission = world.registry.handle_registered(PeerId::random(), 1);
            assert_eq!(admission, Admission::Granted);
        }
        let admission = world.registry.handle_registered(PeerId::random(), 1);
        assert_eq!(admission, Admission::Full);
    }

    #[test]
    fn nothing_is_left_of_who_has_gone() {
        let (mut world, client) = (World::new(), PeerId::random());
        let provider = world.provider;
        world.connect(client, 0);
        world.registry.handle_gone(&provider, 1);
        world
            .registry
            .handle_session_end(&client, &provider, &hash(0));
        let registry = &world.registry;
        assert!(registry.providers.is_empty() && registry.clients.is_empty());
        assert!(registry.of_token.is_empty());
    }
}
