//! Messages: longer than a packet, delivered once although packets are lost.
