//! Environment variables that Kubernetes sets by itself.
//!
//! A Service called `cosec-worker` gives every container of its namespace `COSEC_WORKER_SERVICE_HOST` and more like it,
//! which look like settings of a worker.

/// Whether Kubernetes sets a variable whose name ends in `name`, for a Service whose name is the part before it, or
/// begins there. Case does not count.
///
/// The shapes are `SERVICE_HOST`, `SERVICE_PORT`, `SERVICE_PORT_<name>`, `PORT`, `PORT_<number>_<protocol>` and the
/// last one with `_PROTO`, `_PORT` or `_ADDR` (<https://kubernetes.io/docs/concepts/services-networking/service/>).
#[must_use]
pub fn injects(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words: Vec<&str> = name.split('_').collect();
    (0..words.len()).any(|at| match &words[at..] {
        ["service", "host"] | ["service", "port", ..] | ["port"] => true,
        ["port", number, "tcp" | "udp" | "sctp", rest @ ..] => {
            let part = matches!(rest, [] | ["proto" | "port" | "addr"]);
            part && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_kubernetes_sets_is_recognised() {
        for name in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_GRPC",
            "PORT",
            "PORT_9001_TCP",
            "PORT_9001_TCP_PROTO",
            "PORT_9001_TCP_PORT",
            "PORT_9001_TCP_ADDR",
            "PORT_53_UDP",
            "BASE_SERVICE_HOST",
            "base_service_port",
            "BASE_PORT",
            "BASE_PORT_9001_TCP_ADDR",
        ] {
            assert!(injects(name), "{name}");
        }
        for name in
            ["LISTEN", "STEP_TOKENS", "PORTS", "SERVICE", "SERVICE_HOSTS", "PORT_9001", "PORT_X_TCP", "REPORT"]
        {
            assert!(!injects(name), "{name}");
        }
    }
}
