//! HTTP and gRPC over real sockets, with sessions that play scripts.

mod house;

mod validation;

mod completions;

mod chat;

mod http;

mod resume;

mod grpc;
