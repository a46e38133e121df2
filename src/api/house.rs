//! The connections of one listener, shared by its accept loop and their tasks.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connections::{ConnectionId, Connections, Place, SILENCE};

/// See the module's documentation.
#[derive(Debug)]
pub struct House {
    inner: Mutex<Inner>,
    /// Something has changed that others may wait for: a place is free, a request has come or was
    /// answered.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    connections: Connections,
    /// Tells a connection to close.
    closers: HashMap<ConnectionId, Arc<Notify>>,
}

/// An open connection; dropping it frees its place.
#[derive(Debug)]
pub struct Guest {
    house: Arc<House>,
    id: ConnectionId,
    told_to_close: Arc<Notify>,
}

/// A request that is being answered; dropping it ends that.
#[derive(Debug)]
pub struct Busy {
    house: Arc<House>,
    id: ConnectionId,
    /// Where its connection is.
    pub place: Place,
}

impl House {
    /// A listener's connections: none yet, and places for so many clients.
    pub fn new(clients_max: usize) -> Arc<House> {
        let inner = Inner { connections: Connections::new(clients_max), closers: HashMap::new() };
        Arc::new(House { inner: Mutex::new(inner), changed: Notify::new() })
    }

    /// Waits until another connection could come in.
    pub async fn room(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let inner = self.lock();
                if inner.connections.has_room() || inner.connections.to_close(Instant::now()).is_some() {
                    return;
                }
            }
            // a silent connection may be closed after a while, of which nothing tells
            let _ = tokio::time::timeout(SILENCE, changed).await;
        }
    }

    /// Takes a new connection in, and tells another to close if it needs the place.
    pub fn admit(self: &Arc<House>) -> Guest {
        let now = Instant::now();
        let mut inner = self.lock();
        if let Some(spare) = inner.connections.to_close(now) {
            inner.connections.mark_closing(spare);
            if let Some(closer) = inner.closers.get(&spare) {
                closer.notify_one();
            }
        }
        let id = inner.connections.open(now);
        let told_to_close = Arc::new(Notify::new());
        inner.closers.insert(id, told_to_close.clone());
        drop(inner);
        Guest { house: self.clone(), id, told_to_close }
    }

    /// Waits until no request is being answered.
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
        // no holder of the lock leaves anything half done
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// Waits until the connection has to make room for another one.
    pub async fn told_to_close(&self) {
        self.told_to_close.notified().await;
    }

    /// Waits until the connection has sent its first request, for a while.
    pub async fn first_request(&self) {
        let spoken = async {
            loop {
                let changed = self.house.changed.notified();
                if !self.house.lock().connections.is_silent(self.id) {
                    return;
                }
                changed.await;
            }
        };
        // one that sends none is closed without it
        let _ = tokio::time::timeout(SILENCE, spoken).await;
    }

    /// A request's head has been read.
    pub fn begin_request(&self) -> Busy {
        let place = self.house.lock().connections.begin_request(self.id, Instant::now());
        self.house.changed.notify_waiters();
        Busy { house: self.house.clone(), id: self.id, place }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inner = self.house.lock();
        inner.connections.close(self.id);
        inner.closers.remove(&self.id);
        drop(inner);
        self.house.changed.notify_waiters();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.house.lock().connections.end_request(self.id, Instant::now());
        self.house.changed.notify_waiters();
    }
}

/// A response's body, whose request is being answered until the body ends.
pub struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl BusyBody {
    /// `body`, with `busy` held until it has been sent or dropped.
    pub fn new(body: Body, busy: Busy) -> BusyBody {
        BusyBody { body, _busy: busy }
    }
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
