//! Bodies whose end somebody waits for.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

/// What follows a body. It is dropped with the body, and after it.
pub trait BodyWatch: Unpin {
    /// Called when the last of the body has been taken. Not if the body is dropped before; may be
    /// called again.
    fn ended(&mut self) {}
}

/// A body that tells a watch of its end.
pub struct WatchedBody<B, W> {
    body: B,
    watch: W,
}

impl<B: HttpBody, W: BodyWatch> WatchedBody<B, W> {
    /// Wraps `body`. An empty body has already ended: its frames are never polled.
    pub fn new(body: B, mut watch: W) -> WatchedBody<B, W> {
        if body.is_end_stream() {
            watch.ended();
        }
        WatchedBody { body, watch }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin, W: BodyWatch> HttpBody for WatchedBody<B, W> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if polled.is_none() || self.body.is_end_stream() {
            self.watch.ended();
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
