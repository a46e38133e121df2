//! Clients that close their sending side after a request, and still want the answer.
//!
//! A reader sees the same end of file when a client has shut down its sending side (`nc -N`,
//! `socat`) and when it is gone. While a request is being answered, [`HalfClose`] keeps that end
//! from the HTTP parser until the system reports that the client is gone: at once on a Unix
//! socket; on TCP only after something was sent to it, so after a while it is sent a
//! `100 Continue`, which clients skip.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::HttpBody;
use axum::http::{Request, Version};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::watched_body::{BodyWatch, WatchedBody};

/// How often a half-closed connection is checked for whether its client is gone.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// An interim response without a meaning of its own.
const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Between requests, or within the head of one.
const IDLE: u8 = 0;
/// The handler has not got the whole body of a request.
const RECEIVING: u8 = 1;
/// It has, and nothing of the response was sent; interim responses are allowed.
const WAITING: u8 = 2;
/// It has, and the response has begun.
const ANSWERING: u8 = 3;

/// Where a connection is in its exchange of request and response.
#[derive(Debug, Default)]
pub struct Exchange(AtomicU8);

impl Exchange {
    /// Notes a new request, whose head was received.
    pub fn begin<B: HttpBody>(
        self: &Arc<Exchange>,
        request: Request<B>,
    ) -> Request<WatchedBody<B, Receiving>> {
        self.0.store(RECEIVING, Ordering::Relaxed);
        let receiving = Receiving { version: request.version(), exchange: self.clone() };
        request.map(|body| WatchedBody::new(body, receiving))
    }

    fn received(&self, version: Version) {
        let state = if version >= Version::HTTP_11 { WAITING } else { ANSWERING };
        self.0.store(state, Ordering::Relaxed);
    }

    fn sent(&self) {
        let _ = self.0.compare_exchange(WAITING, ANSWERING, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn state(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Notes when all of a request's body was received.
pub struct Receiving {
    version: Version,
    exchange: Arc<Exchange>,
}

impl BodyWatch for Receiving {
    fn ended(&mut self) {
        self.exchange.received(self.version);
    }
}

/// Ends the exchange when it is dropped, with the body of the response.
pub struct Answering(pub Arc<Exchange>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.store(IDLE, Ordering::Relaxed);
    }
}

/// A client's stream; see the module's documentation.
pub struct HalfClose<Io> {
    io: Io,
    exchange: Arc<Exchange>,
    /// How long a half-closed client is not probed.
    patience: Duration,
    /// Set when the client has closed its sending side during an exchange.
    half_closed: Option<HalfClosed>,
}

struct HalfClosed {
    since: Instant,
    probed: bool,
    next_check: Pin<Box<Sleep>>,
}

impl<Io: AsyncRead + AsyncWrite + AsFd + Unpin> HalfClose<Io> {
    /// Wraps `io`, the connection of `exchange`.
    pub fn new(io: Io, exchange: Arc<Exchange>, patience: Duration) -> HalfClose<Io> {
        HalfClose { io, exchange, patience, half_closed: None }
    }

    /// Called at the end of file. Ready when the end is to be reported: to a parser that is at the
    /// end of a request, when the client is gone; to one within a request, when the handler had time
    /// to take what is left in the parser's buffer and the request is not whole by then.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.exchange.state() != IDLE && !is_gone(&self.io) {
            let half_closed = self.half_closed.get_or_insert_with(|| HalfClosed {
                since: Instant::now(),
                probed: false,
                next_check: Box::pin(tokio::time::sleep(CHECK_INTERVAL)),
            });
            ready!(half_closed.next_check.as_mut().poll(cx));
            if self.exchange.state() == RECEIVING {
                break;
            }
            half_closed.next_check.as_mut().reset(Instant::now() + CHECK_INTERVAL);
            let waited = half_closed.since.elapsed() >= self.patience;
            if waited && !half_closed.probed && self.exchange.state() == WAITING {
                half_closed.probed = true;
                // Whether it was written or not, the next check tells.
                let _ = Pin::new(&mut self.io).poll_write(cx, PROBE);
            }
        }
        Poll::Ready(())
    }
}

/// Whether the other side is gone, as far as the system knows.
fn is_gone(io: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(io, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_err() || fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

impl<Io: AsyncRead + AsyncWrite + AsFd + Unpin> AsyncRead for HalfClose<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() == filled {
            ready!(self.poll_gone(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for HalfClose<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.exchange.sent();
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.exchange.sent();
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
