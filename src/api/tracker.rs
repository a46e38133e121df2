//! Tracks the connections of one listener for its accept loop and the connections' tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::connections::{ConnectionId, Connections, SILENCE, Slot};

/// See the module's documentation.
#[derive(Debug)]
pub struct ConnectionTracker {
    inner: Mutex<Inner>,
    /// Notified when a connection has ended, or a request has begun or ended.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    connections: Connections,
    /// Tells a connection to close.
    closers: HashMap<ConnectionId, Arc<Notify>>,
}

/// An open connection; dropping it frees its slot.
#[derive(Debug)]
pub struct TrackedConnection {
    tracker: Arc<ConnectionTracker>,
    id: ConnectionId,
    told_to_close: Arc<Notify>,
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
pub struct InFlightRequest {
    tracker: Arc<ConnectionTracker>,
    id: ConnectionId,
    /// What its connection counts against.
    pub slot: Slot,
}

impl ConnectionTracker {
    /// No connections yet, and room for so many.
    pub fn new(connections_max: usize) -> Arc<ConnectionTracker> {
        let inner = Inner { connections: Connections::new(connections_max), closers: HashMap::new() };
        Arc::new(ConnectionTracker { inner: Mutex::new(inner), changed: Notify::new() })
    }

    /// Waits until another connection can be accepted.
    pub async fn room(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let inner = self.lock();
                if inner.connections.has_room() || inner.connections.to_close(Instant::now()).is_some() {
                    return;
                }
            }
            // nothing notifies us when a silent connection starts to count as idle
            let _ = tokio::time::timeout(SILENCE, changed).await;
        }
    }

    /// Adds a new connection, and tells an idle one to close if its slot is needed.
    pub fn admit(self: &Arc<ConnectionTracker>) -> TrackedConnection {
        let now = Instant::now();
        let mut inner = self.lock();
        if let Some(idle) = inner.connections.to_close(now) {
            inner.connections.mark_closing(idle);
            if let Some(closer) = inner.closers.get(&idle) {
                closer.notify_one();
            }
        }
        let id = inner.connections.open(now);
        let told_to_close = Arc::new(Notify::new());
        inner.closers.insert(id, told_to_close.clone());
        drop(inner);
        TrackedConnection { tracker: self.clone(), id, told_to_close }
    }

    /// Waits until no request is in flight.
    pub async fn quiet(&self) {
        loop {
            let changed = self.changed.notified();
            if self.lock().connections.busy() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // every update is complete before anything can panic
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TrackedConnection {
    /// Waits until the connection has to close to make room for another one.
    pub async fn told_to_close(&self) {
        self.told_to_close.notified().await;
    }

    /// Waits until the connection has sent its first request, but not for long.
    pub async fn first_request(&self) {
        let spoken = async {
            loop {
                let changed = self.tracker.changed.notified();
                if !self.tracker.lock().connections.is_silent(self.id) {
                    return;
                }
                changed.await;
            }
        };
        // the caller closes the connection either way
        let _ = tokio::time::timeout(SILENCE, spoken).await;
    }

    /// Notes that a request's head has been read.
    pub fn begin_request(&self) -> InFlightRequest {
        let slot = self.tracker.lock().connections.begin_request(self.id, Instant::now());
        self.tracker.changed.notify_waiters();
        InFlightRequest { tracker: self.tracker.clone(), id: self.id, slot }
    }
}

impl Drop for TrackedConnection {
    fn drop(&mut self) {
        let mut inner = self.tracker.lock();
        inner.connections.close(self.id);
        inner.closers.remove(&self.id);
        drop(inner);
        self.tracker.changed.notify_waiters();
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.tracker.lock().connections.end_request(self.id, Instant::now());
        self.tracker.changed.notify_waiters();
    }
}
