//! What arrives in the cache, and how.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::Duration;

use super::server::{COMMIT, tag};
use super::*;

#[test]
fn a_pull_fills_the_cache_in_the_layout_of_hugging_faces_programs() {
    let hub = hub(Faults::default());
    let report = pulled(&hub).expect("pulled");
    let snapshot = hub.cached(&format!("snapshots/{COMMIT}"));
    assert_eq!((report.commit.as_deref(), &report.directory), (Some(COMMIT), &snapshot));
    let files: Vec<&str> = report.files.iter().map(|file| file.path.as_str()).collect();
    let expected = [
        "additional_chat_templates/tools.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model.safetensors",
    ];
    assert_eq!(files, expected);
    assert!(report.files.iter().all(|file| file.fetched_bytes == file.bytes));

    assert_eq!(read(&hub.cached("refs/main")), COMMIT.as_bytes());
    let link = std::fs::read_link(snapshot.join("model.safetensors")).expect("a link");
    assert_eq!(link, Path::new(&format!("../../blobs/{}", tag("model.safetensors", &weights()))));
    assert!(read(&snapshot.join("model.safetensors")) == weights());
    assert_eq!(read(&snapshot.join("additional_chat_templates/tools.jinja")), b"{{ tools }}");
    assert_eq!(names(&hub.cached("blobs")).len(), 5, "and nothing that is incomplete");
    assert_eq!(hub.settings.cache.locate(&name("org/name")).expect("complete"), snapshot);
}

#[test]
fn a_pulled_model_loads_by_its_name() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/target");
    let names = ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"];
    let files = names.map(|name| (name, read(&assets.join(name))));
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
    let hub = Hub::new(&files, Faults::default());
    pulled(&hub).expect("pulled");
    let model = crate::model::ModelRef::Hub(name("org/name"));
    let source = model.locate(&hub.settings.cache).expect("it is in the cache");
    let model = load(&source, ModelRole::Target).expect("it loads");
    assert_eq!(model.name, "name");
    assert!(model.chat_template.is_some());
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_server_that_it_redirects_to() {
    let hub = hub(Faults::default());
    pulled(&hub).expect("pulled");
    let requests = hub.requests();
    let expected = "GET content of model.safetensors bytes=0- no token";
    assert_eq!(requests.last().map(String::as_str), Some(expected), "{requests:#?}");
    let moved = "GET content of config.json bytes=0- token".to_owned();
    assert!(requests.contains(&moved), "a file that the hub itself has elsewhere: {requests:#?}");
    assert!(!requests[..requests.len() - 1].iter().any(|request| request.ends_with("no token")));
}

#[test]
fn what_is_in_the_cache_is_not_fetched_again() {
    let hub = hub(Faults::default());
    pulled(&hub).expect("pulled");
    hub.requests();
    let mut seen = (0, 0);
    let report = pull(&hub.settings, &name("org/name"), &mut |event| match event {
        PullEvent::Total(bytes) => seen.0 = bytes,
        PullEvent::Bytes(bytes) => seen.1 += bytes,
        _ => {}
    });
    let report = report.expect("pulled");
    assert!(report.files.iter().all(|file| file.fetched_bytes == 0));
    assert!(hub.requests().iter().all(|request| !request.starts_with("GET content")));
    assert!(seen.0 > 700_000 && seen.0 == seen.1, "the bar fills: {seen:?}");
}

#[test]
fn a_commit_or_another_revision_is_fetched_beside_main() {
    let hub = hub(Faults::default());
    for revision in ["refs/pr/1", COMMIT] {
        let named = name(&format!("org/name@{revision}"));
        pull(&hub.settings, &named, &mut |_| {}).expect("pulled");
        hub.settings.cache.locate(&named).expect("it is there");
    }
    assert_eq!(read(&hub.cached("refs/refs/pr/1")), COMMIT.as_bytes());
    assert_eq!(names(&hub.cached("refs")), ["refs"], "a commit gets no ref, and main was not requested");
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let cuts = [("model.safetensors", vec![100_000, 50_000, 50_000, 50_000])].into();
    let hub = hub(Faults { cuts, ..Faults::default() });
    let mut retries = 0;
    let report = pull(&hub.settings, &name("org/name"), &mut |event| {
        retries += usize::from(matches!(event, PullEvent::Retries { .. }));
    });
    assert_eq!(report.expect("pulled").files[4].fetched_bytes, 700_000);
    assert_eq!(retries, 4, "more often than it may fail in a row");
    let requests = hub.requests();
    let ranges: Vec<&str> = requests
        .iter()
        .filter_map(|request| request.strip_prefix("GET content of model.safetensors ")?.split(' ').next())
        .collect();
    assert_eq!(ranges, ["bytes=0-", "bytes=100000-", "bytes=150000-", "bytes=200000-", "bytes=250000-"]);
    assert!(read(&hub.cached(&format!("snapshots/{COMMIT}/model.safetensors"))) == weights());
}

#[test]
fn a_pull_that_was_cut_short_leaves_nothing_that_looks_complete_and_the_next_one_resumes() {
    let cuts = [("model.safetensors", vec![300_000, 0, 0, 0])].into();
    let hub = hub(Faults { cuts, ..Faults::default() });
    let error = error(&hub);
    assert!(error.contains("cannot reach") && error.contains("what has arrived is kept"), "{error}");
    let part = hub.cached(&format!("blobs/{}.incomplete", tag("model.safetensors", &weights())));
    assert!(read(&part) == weights()[..300_000]);
    assert!(!hub.cached("refs/main").exists());
    assert!(!hub.cached(&format!("snapshots/{COMMIT}/model.safetensors")).exists());
    assert!(hub.settings.cache.locate(&name("org/name")).is_err());

    hub.set(Faults::default());
    let report = pulled(&hub).expect("pulled");
    let weights_file = report.files.last().expect("the weights come last");
    assert_eq!((weights_file.bytes, weights_file.fetched_bytes), (700_000, 400_000));
    assert!(!part.exists());
    hub.settings.cache.locate(&name("org/name")).expect("complete");
}

#[test]
fn a_server_that_ignores_ranges_sends_the_file_from_its_start() {
    let cuts = [("model.safetensors", vec![100_000])].into();
    let hub = hub(Faults { cuts, whole: true, ..Faults::default() });
    let (mut bytes, mut lost) = (0, 0);
    let report = pull(&hub.settings, &name("org/name"), &mut |event| match event {
        PullEvent::Bytes(more) => bytes += more,
        PullEvent::Lost(less) => lost += less,
        _ => {}
    });
    let report = report.expect("pulled");
    assert_eq!(lost, 100_000);
    assert_eq!(bytes - lost, report.files.iter().map(|file| file.bytes).sum::<u64>());
    assert!(read(&hub.cached(&format!("snapshots/{COMMIT}/model.safetensors"))) == weights());
}

#[test]
fn a_leftover_that_is_longer_than_the_file_is_fetched_anew() {
    let hub = hub(Faults::default());
    let part = hub.cached(&format!("blobs/{}.incomplete", tag("model.safetensors", &weights())));
    std::fs::create_dir_all(hub.cached("blobs")).expect("made");
    std::fs::write(&part, vec![1; 700_001]).expect("written");
    pulled(&hub).expect("pulled");
    assert!(read(&hub.cached(&format!("snapshots/{COMMIT}/model.safetensors"))) == weights());
}

#[test]
fn a_leftover_that_is_whole_needs_no_more_than_its_name() {
    let hub = hub(Faults::default());
    std::fs::create_dir_all(hub.cached("blobs")).expect("made");
    let part = hub.cached(&format!("blobs/{}.incomplete", tag("model.safetensors", &weights())));
    std::fs::write(part, weights()).expect("written");
    assert_eq!(pulled(&hub).expect("pulled").files[4].fetched_bytes, 0);
    assert!(read(&hub.cached(&format!("snapshots/{COMMIT}/model.safetensors"))) == weights());
}

#[test]
fn a_blob_or_link_that_is_not_what_it_should_be_is_replaced() {
    let hub = hub(Faults::default());
    std::fs::create_dir_all(hub.cached("blobs")).expect("made");
    let blob = hub.cached(&format!("blobs/{}", tag("model.safetensors", &weights())));
    std::fs::write(&blob, "cut short").expect("written");
    let link = hub.cached(&format!("snapshots/{COMMIT}/config.json"));
    std::fs::create_dir_all(link.parent().expect("a parent")).expect("made");
    symlink("../../blobs/of-another-time", &link).expect("linked");
    pulled(&hub).expect("pulled");
    assert!(read(&blob) == weights());
    assert_eq!(read(&link), b"{}");
}

#[test]
fn the_shards_that_the_index_names_are_fetched() {
    let index = br#"{"weight_map": {"a": "model 1.safetensors", "b": "model-2.safetensors"}}"#;
    let files = [
        ("config.json", &b"{}"[..]),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model 1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
        ("unused.safetensors", b"three"),
    ];
    let hub = Hub::new(&files, Faults::default());
    let report = pulled(&hub).expect("pulled");
    let files: Vec<&str> = report.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(files[3..], ["model 1.safetensors", "model-2.safetensors"]);
    hub.settings.cache.locate(&name("org/name")).expect("complete");
}

#[test]
fn a_busy_hub_is_asked_again() {
    let hub = hub(Faults { busy: vec![503, 429], ..Faults::default() });
    pulled(&hub).expect("pulled");
    hub.set(Faults { busy: vec![503; 20], ..Faults::default() });
    std::fs::remove_dir_all(hub.settings.cache.root()).expect("removed");
    assert!(error(&hub).contains("answered 503: Sorry"));
}

#[test]
fn a_file_that_another_process_is_fetching_is_waited_for() {
    let hub = hub(Faults::default());
    let tag = tag("model.safetensors", &weights());
    let lock = hub.settings.cache.root().join(format!(".locks/models--org--name/{tag}.lock"));
    std::fs::create_dir_all(lock.parent().expect("a parent")).expect("made");
    let file = std::fs::File::create(&lock).expect("created");
    file.lock().expect("the lock is free");
    let held = std::sync::Mutex::new(Some(file));
    let blob = hub.cached(&format!("blobs/{tag}"));
    let report = pull(&hub.settings, &name("org/name"), &mut |event| {
        if let PullEvent::Waits { path } = event {
            assert_eq!(path, "model.safetensors");
            // the other process is done a little later
            let (file, blob) = (held.lock().expect("nothing panics").take(), blob.clone());
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                std::fs::File::create(blob).and_then(|mut blob| blob.write_all(&weights())).expect("written");
                drop(file);
            });
        }
    });
    assert_eq!(report.expect("pulled").files[4].fetched_bytes, 0, "the other has fetched it");
    assert!(held.into_inner().expect("nothing panics").is_none());
}

#[test]
fn two_pulls_at_once_fetch_every_file_once() {
    let hub = hub(Faults::default());
    std::thread::scope(|scope| {
        let pulls = [0, 1, 2].map(|_| scope.spawn(|| pulled(&hub).expect("pulled")));
        let reports = pulls.map(|pull| pull.join().expect("it ends"));
        let fetched = |report: &PullReport| report.files.iter().map(|file| file.fetched_bytes).sum::<u64>();
        let once = reports[0].files.iter().map(|file| file.bytes).sum::<u64>();
        assert_eq!(reports.iter().map(fetched).sum::<u64>(), once);
    });
    hub.settings.cache.locate(&name("org/name")).expect("complete");
}
