//! Many clients at once, and a daemon that is taken out of service under load.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use specserve::cli::client::{Client, ClientError};
use tokio::task::JoinSet;

use crate::{Daemon, get};

const PROBES: [&str; 4] = ["/health/live", "/health/ready", "/metrics", "/v1/engine/state"];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

fn story(max_tokens: u32) -> Value {
    let messages = json!([{ "role": "user", "content": "Tell me a story about a brave mouse." }]);
    json!({ "model": "tiny", "messages": messages, "max_tokens": max_tokens })
}

#[expect(clippy::disallowed_methods, reason = "real time of another process")]
fn now() -> Instant {
    Instant::now()
}

/// What became of requests, and the longest time that one took.
#[derive(Default)]
struct Outcomes {
    by_code: BTreeMap<String, usize>,
    longest: Duration,
}

/// A client that asks again and again until `end`.
async fn keep_asking(client: Client, end: Instant) -> Outcomes {
    let mut outcomes = Outcomes::default();
    while now() < end {
        let start = now();
        let outcome = client.post("/v1/chat/completions", &story(32)).await;
        outcomes.longest = outcomes.longest.max(start.elapsed());
        let (code, pause) = match outcome {
            Ok(_) => ("answered".to_owned(), None),
            Err(ClientError::Refused { status: 503, body: Some(body), retry_after, .. }) => {
                (body["error"]["code"].as_str().expect("a code").to_owned(), retry_after)
            }
            Err(error) => (error.to_string(), None),
        };
        *outcomes.by_code.entry(code).or_default() += 1;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    outcomes
}

/// Asks each probe in turn until `end`; the times in order.
fn probe(socket: PathBuf, end: Instant) -> Vec<Duration> {
    let mut times = Vec::new();
    while now() < end {
        for path in PROBES {
            let start = now();
            let answer = get(&socket, path).expect("the daemon listens");
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{path}: {answer}");
            times.push(start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    times.sort();
    times
}

#[test]
fn six_hundred_clients_neither_hold_up_probes_nor_wait_longer_than_they_may() {
    let wait_max = Duration::from_secs(2);
    let mut daemon =
        Daemon::spawn(|config| config.replace("queue_wait_ms_max = 60000", "queue_wait_ms_max = 2000"));
    daemon.wait_until_ready();
    let end = now() + Duration::from_secs(8);
    let prober = std::thread::spawn({
        let socket = daemon.socket.clone();
        move || probe(socket, end)
    });
    let outcomes = runtime().block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..600 {
            clients.spawn(keep_asking(Client::new(&daemon.socket), end));
        }
        clients.join_all().await
    });
    let probes = prober.join().expect("every probe is answered");
    let mut by_code: BTreeMap<String, usize> = BTreeMap::new();
    for (code, count) in outcomes.iter().flat_map(|outcomes| &outcomes.by_code) {
        *by_code.entry(code.clone()).or_default() += count;
    }
    let known = ["answered", "queue_full", "queue_timeout", "too_many_connections"];
    assert!(by_code.keys().all(|code| known.contains(&code.as_str())), "{by_code:?}");
    assert!(by_code["answered"] > 32 && by_code.len() > 1, "{by_code:?}");
    // the generation itself, after the queue, takes some time too
    let longest = outcomes.iter().map(|outcomes| outcomes.longest).max().expect("clients");
    assert!(longest < 2 * wait_max + Duration::from_secs(2), "a client waited {longest:?}: {by_code:?}");
    // the machine may be busy with other tests
    let most = probes[probes.len() * 95 / 100];
    assert!(most <= Duration::from_millis(100), "19 of 20 probes took up to {most:?}");
}

/// One of several daemons, as a load balancer sees it.
struct Member {
    client: Client,
    ready: AtomicBool,
}

/// Spreads requests over the ready members in turn, and tries the next one after a refusal.
#[derive(Default)]
struct Balancer {
    members: Vec<Member>,
    next: AtomicUsize,
    retries: AtomicUsize,
}

impl Balancer {
    async fn watch(self: Arc<Balancer>) {
        loop {
            for member in &self.members {
                let ready = member.client.get("/health/ready").await.is_ok();
                member.ready.store(ready, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn request(&self) -> Result<(), ClientError> {
        let mut tries = 0;
        loop {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            let ready: Vec<&Member> =
                self.members.iter().filter(|member| member.ready.load(Ordering::Relaxed)).collect();
            let member = ready[turn % ready.len()];
            match member.client.post("/v1/chat/completions", &story(4)).await {
                Ok(_) => return Ok(()),
                Err(error) if tries == 3 => return Err(error),
                Err(_) => _ = self.retries.fetch_add(1, Ordering::Relaxed),
            }
            tries += 1;
        }
    }
}

#[test]
fn no_request_is_refused_while_one_of_three_daemons_is_taken_out_of_service() {
    const REQUESTS: usize = 1500;
    let mut daemons: Vec<Daemon> = (0..3)
        .map(|_| {
            Daemon::spawn(|config| {
                let config = config.replace("\"specserve\"", "\"none\"").replace("\"slo\"", "\"fifo\"");
                let config = config.replace("late = \"demote\"", "late = \"queue\"");
                config.replace("drain_delay_ms = 0", "drain_delay_ms = 3000")
            })
        })
        .collect();
    daemons.iter_mut().for_each(Daemon::wait_until_ready);
    let members = daemons
        .iter()
        .map(|daemon| Member { client: Client::new(&daemon.socket), ready: AtomicBool::new(true) });
    let balancer = Arc::new(Balancer { members: members.collect(), ..Balancer::default() });
    let done = Arc::new(AtomicUsize::new(0));
    runtime().block_on(async {
        tokio::spawn(balancer.clone().watch());
        let mut clients = JoinSet::new();
        for _ in 0..12 {
            let (balancer, done) = (balancer.clone(), done.clone());
            clients.spawn(async move {
                while done.fetch_add(1, Ordering::Relaxed) < REQUESTS {
                    balancer.request().await.expect("another daemon takes it");
                }
            });
        }
        while done.load(Ordering::Relaxed) < REQUESTS / 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        daemons[1].signal(Signal::TERM);
        clients.join_all().await;
    });
    assert_eq!(balancer.retries.load(Ordering::Relaxed), 0, "its readiness was seen in time");
    let (code, said) = daemons[1].ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("shutdown complete") && !said.contains("WARN"), "{said}");
}
