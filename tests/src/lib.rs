//! What end-to-end tests share.

pub mod certificates;
pub mod cluster;
pub mod etcd;
pub mod fleet;
pub mod grpc_server;
pub mod mock_worker;
pub mod network;
pub mod proxy;
pub mod sim;
pub mod stream;
