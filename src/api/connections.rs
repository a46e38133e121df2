//! The connections of a listener, and which of them to close when it runs out. Pure.
//!
//! Up to `connections_max` connections are served in full. When all of them are in use, the one
//! that has been idle the longest is closed to make room. If none is idle, a few overflow
//! connections are accepted, on which probes are answered and any other request gets 503: under
//! overload a client is told to come back, instead of waiting to be accepted.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Most overflow connections of a listener.
pub const OVERFLOW_CONNECTIONS_MAX: usize = 64;

/// A connection that has sent no request for so long counts as idle.
pub const SILENCE: Duration = Duration::from_secs(1);

/// Identifies a connection of one listener.
pub type ConnectionId = u64;

/// What a connection counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// `connections_max`: any request is served.
    Regular,
    /// The overflow: only probes are answered.
    Overflow,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// It has sent no request yet.
    Silent,
    /// Its request is being answered.
    Busy,
    /// Its last request has been answered.
    Idle,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    slot: Slot,
    activity: Activity,
    /// Since when.
    since: Instant,
    /// It has been told to close.
    closing: bool,
}

/// The open connections of one listener.
#[derive(Debug)]
pub struct Connections {
    connections_max: usize,
    next: ConnectionId,
    open: BTreeMap<ConnectionId, Connection>,
}

impl Connections {
    /// No connections yet, and room for so many.
    pub fn new(connections_max: usize) -> Connections {
        Connections { connections_max, next: 0, open: BTreeMap::new() }
    }

    /// Whether another connection can be accepted without closing one.
    pub fn has_room(&self) -> bool {
        self.free_slot().is_some()
    }

    /// The connection to close before the next one is accepted, if any: the longest idle regular
    /// one, or, when the overflow is full as well, the longest idle of that.
    pub fn to_close(&self, now: Instant) -> Option<ConnectionId> {
        match self.free_slot() {
            Some(Slot::Regular) => None,
            Some(Slot::Overflow) => self.longest_unused(Slot::Regular, now),
            None => [Slot::Regular, Slot::Overflow].iter().find_map(|&slot| self.longest_unused(slot, now)),
        }
    }

    /// Adds a new connection.
    pub fn open(&mut self, now: Instant) -> ConnectionId {
        let slot = self.free_slot().unwrap_or(Slot::Overflow);
        let id = self.next;
        self.next += 1;
        let connection = Connection { slot, activity: Activity::Silent, since: now, closing: false };
        self.open.insert(id, connection);
        id
    }

    /// Notes that a request's head has been read, and returns the connection's slot. An overflow
    /// connection becomes a regular one if there is room by now.
    pub fn begin_request(&mut self, id: ConnectionId, now: Instant) -> Slot {
        let room = self.taken(Slot::Regular) < self.connections_max;
        let Some(connection) = self.open.get_mut(&id) else { return Slot::Overflow };
        if room && !connection.closing {
            connection.slot = Slot::Regular;
        }
        (connection.activity, connection.since) = (Activity::Busy, now);
        connection.slot
    }

    /// Notes that the response has been sent, or abandoned.
    pub fn end_request(&mut self, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.open.get_mut(&id) {
            (connection.activity, connection.since) = (Activity::Idle, now);
        }
    }

    /// Notes that a connection has been told to close. It no longer counts.
    pub fn mark_closing(&mut self, id: ConnectionId) {
        if let Some(connection) = self.open.get_mut(&id) {
            connection.closing = true;
        }
    }

    /// Removes a connection that has ended.
    pub fn close(&mut self, id: ConnectionId) {
        self.open.remove(&id);
    }

    /// Whether a connection has sent no request yet.
    pub fn is_silent(&self, id: ConnectionId) -> bool {
        self.open.get(&id).is_some_and(|connection| connection.activity == Activity::Silent)
    }

    /// Requests in flight.
    pub fn busy(&self) -> usize {
        self.open.values().filter(|connection| connection.activity == Activity::Busy).count()
    }

    fn free_slot(&self) -> Option<Slot> {
        if self.taken(Slot::Regular) < self.connections_max {
            return Some(Slot::Regular);
        }
        (self.taken(Slot::Overflow) < OVERFLOW_CONNECTIONS_MAX).then_some(Slot::Overflow)
    }

    fn taken(&self, slot: Slot) -> usize {
        self.open.values().filter(|connection| connection.slot == slot && !connection.closing).count()
    }

    /// The connection that has been without a request for the longest.
    fn longest_unused(&self, slot: Slot, now: Instant) -> Option<ConnectionId> {
        let unused = |connection: &Connection| match connection.activity {
            Activity::Busy => false,
            Activity::Idle => true,
            // a request may be on its way
            Activity::Silent => now.duration_since(connection.since) >= SILENCE,
        };
        let unused = self
            .open
            .iter()
            .filter(|(_, connection)| connection.slot == slot && !connection.closing && unused(connection));
        unused.min_by_key(|(_, connection)| connection.since).map(|(&id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens connections with a request each.
    fn busy(connections: &mut Connections, count: usize, now: Instant) -> Vec<(ConnectionId, Slot)> {
        (0..count)
            .map(|_| {
                let id = connections.open(now);
                (id, connections.begin_request(id, now))
            })
            .collect()
    }

    #[test]
    fn connections_beyond_the_maximum_are_overflow() {
        let now = Instant::now();
        let mut connections = Connections::new(2);
        let slots: Vec<Slot> = busy(&mut connections, 3, now).into_iter().map(|(_, slot)| slot).collect();
        assert_eq!(slots, [Slot::Regular, Slot::Regular, Slot::Overflow]);
        assert_eq!(connections.to_close(now), None, "none of them is idle");
        busy(&mut connections, OVERFLOW_CONNECTIONS_MAX - 1, now);
        assert!(!connections.has_room());
    }

    #[test]
    fn the_connection_that_has_been_idle_the_longest_makes_room() {
        let start = Instant::now();
        let mut connections = Connections::new(3);
        let opened = busy(&mut connections, 3, start);
        for (order, &(id, _)) in [&opened[2], &opened[0]].into_iter().enumerate() {
            connections.end_request(id, start + Duration::from_millis(order as u64));
        }
        let now = start + Duration::from_millis(5);
        for expected in [opened[2].0, opened[0].0] {
            assert_eq!(connections.to_close(now), Some(expected));
            connections.mark_closing(expected);
            assert_eq!(connections.to_close(now), None, "its slot is free");
            assert_eq!(busy(&mut connections, 1, now)[0].1, Slot::Regular);
        }
        assert_eq!(connections.to_close(now), None, "the third is busy");
    }

    #[test]
    fn a_silent_connection_keeps_its_slot_for_a_second() {
        let start = Instant::now();
        let mut connections = Connections::new(1);
        let silent = connections.open(start);
        assert_eq!(connections.to_close(start + SILENCE / 2), None);
        assert_eq!(connections.to_close(start + SILENCE), Some(silent));
    }

    #[test]
    fn silent_overflow_connections_do_not_keep_probes_out() {
        let start = Instant::now();
        let mut connections = Connections::new(1);
        busy(&mut connections, 1, start);
        let first_overflow = connections.open(start);
        (1..OVERFLOW_CONNECTIONS_MAX).for_each(|_| _ = connections.open(start));
        assert!(!connections.has_room());
        assert_eq!(connections.to_close(start), None);
        assert_eq!(connections.to_close(start + SILENCE), Some(first_overflow));
    }

    #[test]
    fn an_overflow_connection_becomes_a_regular_one_when_there_is_room() {
        let now = Instant::now();
        let mut connections = Connections::new(1);
        let regular = connections.open(now);
        let overflow = connections.open(now);
        assert_eq!(connections.begin_request(overflow, now), Slot::Overflow);
        connections.end_request(overflow, now);
        connections.close(regular);
        assert_eq!(connections.begin_request(overflow, now), Slot::Regular);
        assert_eq!(connections.busy(), 1);
    }
}
