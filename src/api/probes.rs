//! Routes that show how the daemon is.

/// They are answered when requests are not: while all connections are taken, and during a drain.
/// Monitors ask them every few seconds, so their lines in the log have level `debug`.
const PROBES: [&str; 7] =
    ["/health/live", "/health/ready", "/health", "/ping", "/version", "/metrics", "/v1/engine/state"];

/// Whether `path` is one of the probes.
pub fn is_probe(path: &str) -> bool {
    PROBES.contains(&path)
}
