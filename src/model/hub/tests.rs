use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::HubCache;
use crate::model::{ModelRef, ModelSource, load, load_pair};
use crate::protocol::ModelRole;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache with the embedded target as `Org/tiny`, in the layout of Hugging Face's programs.
struct Cached {
    /// Kept for its drop.
    root: tempfile::TempDir,
}

impl Cached {
    fn new() -> Cached {
        let cached = Cached { root: tempfile::tempdir().expect("a directory for the test") };
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/target");
        cached.write("models--Org--tiny/refs/main", COMMIT);
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            let bytes = std::fs::read(assets.join(name)).expect("an asset");
            cached.write(&format!("models--Org--tiny/blobs/tag-of-{name}"), bytes);
            cached.write(&format!("models--Org--tiny/snapshots/{COMMIT}/.keep"), "");
            symlink(format!("../../blobs/tag-of-{name}"), cached.file(name)).expect("linked");
        }
        cached
    }

    fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }

    /// Path of a file of the snapshot.
    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(format!("models--Org--tiny/snapshots/{COMMIT}/{name}"))
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).expect("it was there");
    }

    fn locate(&self, name: &str) -> Result<ModelSource, String> {
        let cache = HubCache::at(self.root.path().to_owned());
        let model = ModelRef::parse(name).expect("a model");
        model.locate(&cache).map_err(|error| error.to_string())
    }

    fn error(&self, name: &str) -> String {
        self.locate(name).expect_err("it is refused")
    }
}

#[test]
fn a_model_is_found_by_its_name_and_loads_through_the_links_of_the_cache() {
    let cached = Cached::new();
    let source = cached.locate("Org/tiny").expect("it is there");
    let model = load(&source, ModelRole::Target).expect("it loads");
    assert_eq!(model.name, "tiny");
    let pair = load_pair(&source, Some(&ModelSource::EmbeddedTiny)).expect("the pair loads");
    assert!(pair.draft.is_some());
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let cached = Cached::new();
    cached.write("models--Org--tiny/refs/refs/pr/1", format!("{COMMIT}\n"));
    let main = cached.locate("Org/tiny").expect("it is there");
    for revision in ["main", "refs/pr/1", COMMIT] {
        let found = cached.locate(&format!("Org/tiny@{revision}")).expect(revision);
        let (ModelSource::Snapshot { directory, .. }, ModelSource::Snapshot { directory: expected, .. }) =
            (found, &main)
        else {
            panic!("{revision} is in the cache")
        };
        assert_eq!(directory, *expected);
    }
}

#[test]
fn a_directory_of_that_path_wins_over_the_cache() {
    // tests run in the root of the package
    assert_eq!(Cached::new().locate("src/model"), Ok(ModelSource::Directory("src/model".into())));
}

#[test]
fn what_is_not_in_the_cache_is_named_with_where_it_was_looked_for_and_how_to_fetch_it() {
    let cached = Cached::new();
    let other = "f".repeat(40);
    for (name, looked_for) in [
        ("Org/other", "models--Org--other".to_owned()),
        ("Org/tiny@v2", "models--Org--tiny/refs/v2".to_owned()),
        (&format!("Org/tiny@{other}"), format!("models--Org--tiny/snapshots/{other}")),
    ] {
        let error = cached.error(name);
        let path = cached.root.path().join(looked_for).display().to_string();
        assert!(error.starts_with(&format!("`{name}` is neither a directory nor a model in")), "{error}");
        assert!(error.contains(&path), "{error}");
        assert!(error.ends_with(&format!("fetch it with `specserve pull {name}`")), "{error}");
    }
    let error = cached.error("org/Tiny");
    assert!(error.contains("; there is `Org/tiny`)"), "{error}");
}

#[test]
fn a_snapshot_without_one_of_its_files_is_incomplete() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let cached = Cached::new();
        cached.remove(name);
        let error = cached.error("Org/tiny");
        assert!(error.contains("only a part of `Org/tiny`"), "{error}");
        assert!(error.contains(&format!("{COMMIT} has no {name}; fetch")), "{error}");
        assert!(error.ends_with("`specserve pull Org/tiny`"), "{error}");
        // what a download leaves that was cut short
        symlink("../../blobs/nothing", cached.file(name)).expect("linked");
        assert_eq!(cached.error("Org/tiny"), error, "a link to nothing is no file");
    }
}

#[test]
fn shards_that_the_index_names_and_the_snapshot_lacks_are_named() {
    let cached = Cached::new();
    cached.remove("model.safetensors");
    let index = r#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "3.safetensors"}}"#;
    std::fs::write(cached.file("model.safetensors.index.json"), index).expect("written");
    std::fs::write(cached.file("1.safetensors"), "").expect("written");
    let error = cached.error("Org/tiny");
    assert!(error.contains("has no 2.safetensors, 3.safetensors; fetch"), "{error}");
}

#[test]
fn weights_in_another_format_are_left_to_the_loader_and_gguf_is_refused() {
    let cached = Cached::new();
    cached.remove("model.safetensors");
    std::fs::write(cached.file("pytorch_model.bin"), "").expect("written");
    let source = cached.locate("Org/tiny").expect("pulling it again would not help");
    let error = load(&source, ModelRole::Target).expect_err("no safetensors").to_string();
    assert!(error.contains("convert its pytorch_model.bin to safetensors"), "{error}");

    cached.remove("pytorch_model.bin");
    std::fs::write(cached.file("tiny-Q4_K_M.gguf"), "").expect("written");
    let error = cached.error("Org/tiny");
    assert!(error.contains("tiny-Q4_K_M.gguf is a GGUF file"), "{error}");
}

#[test]
fn a_ref_that_holds_no_commit_leads_nowhere() {
    let cached = Cached::new();
    cached.write("models--Org--tiny/refs/main", "../../..");
    let error = cached.error("Org/tiny");
    assert!(error.contains("refs/main") && error.contains("it holds no commit"), "{error}");
}

#[test]
fn the_cache_is_where_the_variables_of_hugging_face_say() {
    let cache_of = |variables: &[(&str, &str)], home: Option<&str>| {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        HubCache::of_variables(&variable, home.map(PathBuf::from)).root().to_owned()
    };
    for (variables, expected) in [
        (&[][..], "/u/.cache/huggingface/hub"),
        (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
        (&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/h/hub"),
        (&[("HF_HOME", "~/h")], "/u/h/hub"),
        (&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")], "/c"),
        (&[("HF_HUB_CACHE", "~/c")], "/u/c"),
        (&[("HUGGINGFACE_HUB_CACHE", "/c")], "/c"),
        (&[("HF_HUB_CACHE", ""), ("HF_HOME", "")], "/u/.cache/huggingface/hub"),
    ] {
        assert_eq!(cache_of(variables, Some("/u")), Path::new(expected), "{variables:?}");
    }
    assert_eq!(cache_of(&[], None), Path::new("/.cache/huggingface/hub"));
}
