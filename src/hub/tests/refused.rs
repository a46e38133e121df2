//! What is refused, and what the user is told to do.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::server::{COMMIT, tag};
use super::*;

#[test]
fn weights_whose_hash_is_wrong_are_refused_and_removed() {
    let mut bytes = weights();
    bytes[650_000] ^= 1;
    let wrong = [("model.safetensors", bytes)].into();
    let hub = hub(Faults { wrong, ..Faults::default() });
    let error = error(&hub);
    let expected = tag("model.safetensors", &weights());
    assert!(error.contains("model.safetensors is damaged") && error.contains(&expected), "{error}");
    assert!(error.contains("pull again"), "{error}");
    let left = names(&hub.cached("blobs"));
    assert!(!left.iter().any(|name| name.starts_with(&expected)), "{left:?}");
    assert!(!hub.cached("refs/main").exists());

    hub.set(Faults::default());
    pulled(&hub).expect("pulled");
}

#[test]
fn a_resumed_file_is_checked_from_its_first_byte_on() {
    let hub = hub(Faults::default());
    std::fs::create_dir_all(hub.cached("blobs")).expect("made");
    let part = hub.cached(&format!("blobs/{}.incomplete", tag("model.safetensors", &weights())));
    std::fs::write(&part, vec![0; 1000]).expect("written");
    assert!(error(&hub).contains("model.safetensors is damaged"));
    assert!(!part.exists());
    pulled(&hub).expect("the next pull starts over");
}

#[test]
fn a_description_whose_hash_is_wrong_is_refused_too() {
    let wrong = [("config.json", b"[]".to_vec())].into();
    let hub = hub(Faults { wrong, ..Faults::default() });
    assert!(error(&hub).contains("config.json is damaged"));
}

#[test]
fn more_bytes_than_were_announced_are_not_written() {
    let mut bytes = weights();
    bytes.push(0);
    let wrong = [("model.safetensors", bytes)].into();
    let hub = hub(Faults { wrong, ..Faults::default() });
    assert!(error(&hub).contains("more than the 700000 bytes that it announced"));
}

#[test]
fn weights_without_a_hash_are_refused_and_descriptions_are_not() {
    let hub = hub(Faults { tag: Some("5f3c-17"), ..Faults::default() });
    let error = error(&hub);
    assert!(error.contains("model.safetensors comes with no SHA-256"), "{error}");
    assert_eq!(names(&hub.cached(&format!("snapshots/{COMMIT}"))).len(), 4);
}

#[test]
fn an_optional_file_that_the_hub_lacks_is_left_out_and_a_required_one_is_named() {
    let hub = hub(Faults { missing: vec!["generation_config.json"], ..Faults::default() });
    let report = pulled(&hub).expect("pulled");
    assert!(report.files.iter().all(|file| file.path != "generation_config.json"));
    for missing in ["config.json", "tokenizer.json", "model.safetensors"] {
        let hub = super::hub(Faults { missing: vec![missing], ..Faults::default() });
        assert_eq!(error(&hub), format!("`org/name` has no {missing}"));
    }
}

#[test]
fn a_model_that_does_not_exist_or_is_private_says_what_to_check() {
    for refusal in [(404, "RepoNotFound"), (401, "RepoNotFound"), (401, "")] {
        let hub = hub(Faults { listing: Some(refusal), ..Faults::default() });
        let error = error(&hub);
        assert!(error.contains("shows no model `org/name`") && error.contains("check the name"), "{error}");
        assert!(error.contains("HF_TOKEN"), "{error}");
        assert_eq!(names(hub.directory()), [""; 0], "nothing was written");
    }
    let hub = hub(Faults::default());
    let error = pull(&hub.settings, &name("org/name@v9"), &mut |_| {}).expect_err("no such revision");
    assert!(error.to_string().contains("`org/name` has no branch, tag or commit `v9`"), "{error}");
}

#[test]
fn a_gated_model_says_to_accept_its_conditions_and_to_set_a_token() {
    for status in [401, 403] {
        let mut hub = hub(Faults { files: Some((status, "GatedRepo")), ..Faults::default() });
        let with = error(&hub);
        let page = format!("accept its conditions at {}/org/name", hub.settings.endpoint);
        assert!(with.contains(&page) && with.contains("the one that was sent has none"), "{with}");
        hub.settings.token = None;
        let without = error(&hub);
        assert!(without.contains(&page) && without.contains("set HF_TOKEN"), "{without}");
    }
}

#[test]
fn without_a_network_the_error_names_what_failed() {
    let mut hub = hub(Faults::default());
    // a port that nothing listens on
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    hub.settings.endpoint = format!("http://{}", closed.expect("a port"));
    let error = error(&hub);
    let url = format!("cannot reach {}/api/models/org/name/revision/main", hub.settings.endpoint);
    assert!(error.starts_with(&url), "{error}");
    assert!(error.contains("refused") && error.contains("check the network"), "{error}");
    for wrong in ["huggingface.co", "ftp://x", ""] {
        hub.settings.endpoint = wrong.to_owned();
        assert!(super::error(&hub).starts_with("HF_ENDPOINT is"), "{wrong}");
    }
}

#[test]
fn offline_the_cache_is_all_there_is() {
    let mut hub = hub(Faults::default());
    hub.settings.offline = true;
    let message = error(&hub);
    assert!(
        message.starts_with("HF_HUB_OFFLINE forbids the network, and `org/name` is neither"),
        "{message}"
    );
    assert_eq!(hub.requests(), [""; 0]);
    hub.settings.offline = false;
    pulled(&hub).expect("pulled");
    hub.requests();
    hub.settings.offline = true;
    assert_eq!(pulled(&hub).expect("it is there").commit, None);
    assert_eq!(hub.requests(), [""; 0]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named_with_what_to_set() {
    let hub = hub(Faults::default());
    // stands for every cache that cannot be written: this also holds for root
    std::fs::write(hub.settings.cache.root(), "a file").expect("written");
    let error = error(&hub);
    assert!(error.contains("models--org--name"), "{error}");

    let denied = HubError::File { path: "/x".into(), source: std::io::ErrorKind::PermissionDenied.into() };
    assert!(denied.to_string().ends_with("set HF_HOME to a directory that you can write"), "{denied}");
    let full = HubError::File { path: "/x".into(), source: std::io::ErrorKind::StorageFull.into() };
    assert!(full.to_string().ends_with("make room and pull again: what has arrived is kept"), "{full}");
}

#[test]
fn a_complete_cache_that_cannot_be_written_is_enough() {
    let hub = hub(Faults::default());
    pulled(&hub).expect("pulled");
    let before =
        std::fs::metadata(hub.cached("refs/main")).and_then(|found| found.modified()).expect("a time");
    for directory in ["blobs", "refs", &format!("snapshots/{COMMIT}")] {
        std::fs::set_permissions(hub.cached(directory), Permissions::from_mode(0o555)).expect("changed");
    }
    pulled(&hub).expect("there is nothing to write");
    let after =
        std::fs::metadata(hub.cached("refs/main")).and_then(|found| found.modified()).expect("a time");
    assert_eq!(before, after);
}

#[test]
fn an_answer_that_is_not_the_hubs_is_named() {
    let files = [("config.json", &b"{}"[..]), ("tokenizer.json", b"{}"), ("model.safetensors", b"w")];
    let hub = Hub::new(&files, Faults { tag: Some("\"../../x\""), ..Faults::default() });
    let error = error(&hub);
    assert!(error.contains("does not answer like the Hugging Face hub: it sends no ETag"), "{error}");

    hub.set(Faults { unlinked: true, ..Faults::default() });
    let error = super::error(&hub);
    assert!(error.contains("it sends no ETag"), "that of a redirection is not the file's: {error}");
}

#[test]
fn what_the_disk_has_no_room_for_is_refused_before_it_is_fetched() {
    let hub = hub(Faults { size: Some(1 << 60), ..Faults::default() });
    let error = error(&hub);
    assert!(error.contains("GB free, but 1152921504.61 GB are to be fetched; make room"), "{error}");
    assert!(!hub.requests().iter().any(|request| request.contains("content of model")));
}
