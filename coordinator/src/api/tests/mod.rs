//! Both doors over real sockets, before a generator that plays scripts.

mod house;

mod validation;

mod completions;

mod chat;

mod http;

mod resume;

mod grpc;
