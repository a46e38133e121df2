//! The stages of a server's shutdown.

/// Shutdown stage; only ever advances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Accepting and serving.
    Open,
    /// Accepting and serving, but each connection is closed after its response, so that clients
    /// that keep theirs open go elsewhere.
    Leaving,
    /// Accepting; requests get 503, probes are answered, and responses in flight complete.
    Refusing,
    /// No new connections; idle ones are closed and responses in flight complete.
    Draining,
    /// Connections are dropped.
    Closed,
}
