//! What end-to-end tests share.

pub mod cluster;
pub mod mock_worker;
