//! Who is let in over TLS, by real processes: clients, coordinators, workers, and those who read metrics.

mod clients;
mod identities;
mod open_ports;
mod peers;
mod rotation;
