//! Which connections a listener keeps, and which it closes to make room. Pure.
//!
//! A listener has places for clients, and a few more for those that come when all of these are
//! taken: there a probe gets its answer and anything else gets 503, so that a full house is
//! never a silent one. Before a client has to go there, the connection that has been idle the
//! longest is closed.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Places beside those for clients.
pub const EXTRA_PLACES: usize = 64;

/// How long a connection may stay silent before its first request while others need its place.
pub const SILENCE: Duration = Duration::from_secs(1);

/// Identifies a connection of one listener.
pub type ConnectionId = u64;

/// Where a new connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among the clients: it may ask for anything.
    Client,
    /// Beside them: probes only.
    Extra,
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
    place: Place,
    activity: Activity,
    /// Since when.
    since: Instant,
    /// Told to close.
    closing: bool,
}

/// The open connections of one listener.
#[derive(Debug)]
pub struct Connections {
    clients_max: usize,
    next: ConnectionId,
    open: BTreeMap<ConnectionId, Connection>,
}

impl Connections {
    /// No connections yet, and places for so many clients.
    pub fn new(clients_max: usize) -> Connections {
        Connections { clients_max, next: 0, open: BTreeMap::new() }
    }

    /// Whether another connection can come in without one being closed for it.
    pub fn has_room(&self) -> bool {
        self.free_place().is_some()
    }

    /// The connection that has to make room for the next one, if any can: the longest idle of the
    /// clients, else, where the extra places are taken too, the longest idle there.
    pub fn to_close(&self, now: Instant) -> Option<ConnectionId> {
        match self.free_place() {
            Some(Place::Client) => None,
            Some(Place::Extra) => self.longest_unused(Place::Client, now),
            None => [Place::Client, Place::Extra].iter().find_map(|&place| self.longest_unused(place, now)),
        }
    }

    /// Takes a new connection in.
    pub fn open(&mut self, now: Instant) -> ConnectionId {
        let place = self.free_place().unwrap_or(Place::Extra);
        let id = self.next;
        self.next += 1;
        let connection = Connection { place, activity: Activity::Silent, since: now, closing: false };
        self.open.insert(id, connection);
        id
    }

    /// A request's head has been read; where its connection is. One of the extra places is a
    /// client as soon as there is room for it.
    pub fn begin_request(&mut self, id: ConnectionId, now: Instant) -> Place {
        let room = self.taken(Place::Client) < self.clients_max;
        let Some(connection) = self.open.get_mut(&id) else { return Place::Extra };
        if room && !connection.closing {
            connection.place = Place::Client;
        }
        (connection.activity, connection.since) = (Activity::Busy, now);
        connection.place
    }

    /// A response has been sent, or given up.
    pub fn end_request(&mut self, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.open.get_mut(&id) {
            (connection.activity, connection.since) = (Activity::Idle, now);
        }
    }

    /// Notes that a connection has been told to close. Its place is free from now on.
    pub fn mark_closing(&mut self, id: ConnectionId) {
        if let Some(connection) = self.open.get_mut(&id) {
            connection.closing = true;
        }
    }

    /// A connection has ended.
    pub fn close(&mut self, id: ConnectionId) {
        self.open.remove(&id);
    }

    /// Whether a connection has sent no request yet.
    pub fn is_silent(&self, id: ConnectionId) -> bool {
        self.open.get(&id).is_some_and(|connection| connection.activity == Activity::Silent)
    }

    /// Requests that are being answered.
    pub fn busy(&self) -> usize {
        self.open.values().filter(|connection| connection.activity == Activity::Busy).count()
    }

    fn free_place(&self) -> Option<Place> {
        if self.taken(Place::Client) < self.clients_max {
            return Some(Place::Client);
        }
        (self.taken(Place::Extra) < EXTRA_PLACES).then_some(Place::Extra)
    }

    fn taken(&self, place: Place) -> usize {
        self.open.values().filter(|connection| connection.place == place && !connection.closing).count()
    }

    /// Of the connections without a request, the one that has had none for the longest.
    fn longest_unused(&self, place: Place, now: Instant) -> Option<ConnectionId> {
        let unused = |connection: &Connection| match connection.activity {
            Activity::Busy => false,
            Activity::Idle => true,
            // a request may be on its way
            Activity::Silent => now.duration_since(connection.since) >= SILENCE,
        };
        let unused = self
            .open
            .iter()
            .filter(|(_, connection)| connection.place == place && !connection.closing && unused(connection));
        unused.min_by_key(|(_, connection)| connection.since).map(|(&id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens connections with a request each.
    fn busy(connections: &mut Connections, count: usize, now: Instant) -> Vec<(ConnectionId, Place)> {
        (0..count)
            .map(|_| {
                let id = connections.open(now);
                (id, connections.begin_request(id, now))
            })
            .collect()
    }

    #[test]
    fn those_that_come_when_all_places_are_taken_are_beside_the_clients() {
        let now = Instant::now();
        let mut connections = Connections::new(2);
        let places: Vec<Place> = busy(&mut connections, 3, now).into_iter().map(|(_, place)| place).collect();
        assert_eq!(places, [Place::Client, Place::Client, Place::Extra]);
        assert_eq!(connections.to_close(now), None, "none of them is idle");
        busy(&mut connections, EXTRA_PLACES - 1, now);
        assert!(!connections.has_room());
    }

    #[test]
    fn the_connection_that_has_been_idle_the_longest_makes_room() {
        let start = Instant::now();
        let mut connections = Connections::new(3);
        let clients = busy(&mut connections, 3, start);
        for (order, &(id, _)) in [&clients[2], &clients[0]].into_iter().enumerate() {
            connections.end_request(id, start + Duration::from_millis(order as u64));
        }
        let now = start + Duration::from_millis(5);
        for expected in [clients[2].0, clients[0].0] {
            assert_eq!(connections.to_close(now), Some(expected));
            connections.mark_closing(expected);
            assert_eq!(connections.to_close(now), None, "its place is free");
            assert_eq!(busy(&mut connections, 1, now)[0].1, Place::Client);
        }
        assert_eq!(connections.to_close(now), None, "the third is busy");
    }

    #[test]
    fn a_connection_that_sends_nothing_keeps_its_place_for_a_second() {
        let start = Instant::now();
        let mut connections = Connections::new(1);
        let silent = connections.open(start);
        assert_eq!(connections.to_close(start + SILENCE / 2), None);
        assert_eq!(connections.to_close(start + SILENCE), Some(silent));
    }

    #[test]
    fn silent_connections_in_the_extra_places_do_not_keep_probes_out() {
        let start = Instant::now();
        let mut connections = Connections::new(1);
        busy(&mut connections, 1, start);
        let first_extra = connections.open(start);
        (1..EXTRA_PLACES).for_each(|_| _ = connections.open(start));
        assert!(!connections.has_room());
        assert_eq!(connections.to_close(start), None);
        assert_eq!(connections.to_close(start + SILENCE), Some(first_extra));
    }

    #[test]
    fn a_connection_in_an_extra_place_becomes_a_client_when_there_is_room() {
        let now = Instant::now();
        let mut connections = Connections::new(1);
        let client = connections.open(now);
        let extra = connections.open(now);
        assert_eq!(connections.begin_request(extra, now), Place::Extra);
        connections.end_request(extra, now);
        connections.close(client);
        assert_eq!(connections.begin_request(extra, now), Place::Client);
        assert_eq!(connections.busy(), 1);
    }
}
