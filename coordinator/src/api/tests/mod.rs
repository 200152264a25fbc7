//! HTTP and gRPC over real sockets, with sessions that follow scripts.

mod fixture;

mod validation;

mod completions;

mod bounds;
mod chat;

mod http;

mod auth;

mod resume;

mod grpc;
