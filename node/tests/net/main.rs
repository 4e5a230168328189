//! Several nodes in one process, on loopback, over TCP and QUIC.

mod cut_log;
mod hostile;
mod hostile_gossip;
mod protocols;
mod relays;
mod returning;
mod support;
