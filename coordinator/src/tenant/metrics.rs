//! What is counted of who may ask.

use prometheus::{IntCounterVec, IntGauge};

cosec_proto::metrics! {
    /// Metrics of tenants.
    pub struct TenantMetrics {
        /// 1 while the file with the API keys cannot be read or is wrong; what it said before holds.
        pub keys_file_broken: IntGauge = "cosec_keys_file_broken";
        /// Fetches of the OIDC issuer's keys by outcome: `taken` or `failed`.
        pub oidc_key_fetches: IntCounterVec = "cosec_oidc_key_fetches_total" ["outcome"];
    }
}
