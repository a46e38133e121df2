//! docs/config.md and the tiny file name every key, and the page says the defaults and bounds that
//! the code has.

use std::collections::BTreeSet;

use super::tests::tiny_with;
use super::{Config, TINY_CPU_TOML};

const DOCS: &str = include_str!("../../docs/config.md");

/// The cells of the row on `key` in the part of the page on `section`.
fn row(section: &str, key: &str) -> Vec<&'static str> {
    // classes are described in the part on [slo]
    let heading = format!("## [{}]", section.trim_end_matches(".classes"));
    let part = DOCS.split(&heading).nth(1).unwrap_or_else(|| panic!("docs/config.md has no {heading}"));
    let part = part.split("\n## ").next().unwrap_or(part);
    let start = format!("| `{key}` |");
    let line = part.lines().find(|line| line.starts_with(&start));
    let line = line.unwrap_or_else(|| panic!("{heading} in docs/config.md has no row for {key}"));
    line.split(" | ").map(str::trim).collect()
}

/// A line of the effective configuration: key, value if set, bound.
fn entry(line: &str) -> Option<(&str, Option<&str>, &str)> {
    let (setting, bound) = line.split_once("  # ")?;
    match setting.strip_prefix("# ") {
        Some(absent) => Some((absent.strip_suffix(" is not set")?, None, bound)),
        None => setting.split_once(" = ").map(|(key, value)| (key, Some(value), bound)),
    }
}

#[test]
fn the_docs_say_the_bounds_and_defaults_of_every_number() {
    let smallest = "[target]\nmodel = \"embedded:tiny\"\n[draft]\nmodel = \"embedded:tiny\"\n";
    let text = Config::parse(smallest).expect("valid").to_toml();
    let is_number = |text: &str| text.parse::<f64>().is_ok();
    let mut section = "";
    let mut checked = 0;
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_matches(['[', ']']);
        }
        let Some((key, value, bound)) = entry(line) else { continue };
        let cells = row(section, key);
        if bound.split(" to ").all(is_number) {
            assert!(cells[2].starts_with(bound), "{section}.{key}: {bound} is documented as {}", cells[2]);
            checked += 1;
        }
        // follows from other keys
        let derived = key == "connections_max";
        if let Some(value) = value.filter(|value| is_number(value) && !derived) {
            let default = cells[1].split(' ').next();
            assert_eq!(default, Some(value), "default of {section}.{key}");
        }
    }
    assert!(checked > 20, "only {checked} keys have bounds");
}

/// Keys as `section.key`, of the effective configuration and of those that are not set.
fn keys_of(text: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
            keys.extend((!key.contains(' ')).then(|| format!("{section}.{key}")));
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" is not set") {
            keys.insert(format!("{section}.{key}"));
        }
    }
    keys
}

#[test]
fn the_tiny_file_and_the_docs_name_every_key() {
    let blocks = Config::parse(&tiny_with("memory_mib_max = 64", "target_blocks = 64")).expect("valid");
    let mut effective = keys_of(&Config::default_tiny().to_toml());
    effective.extend(keys_of(&blocks.to_toml()));
    let percent = Config::parse(&tiny_with("memory_mib_max = 64", "memory_percent = 64")).expect("valid");
    effective.extend(keys_of(&percent.to_toml()));
    assert_eq!(keys_of(TINY_CPU_TOML), effective);
    let share = Config::parse(&tiny_with("memory_mib_max = 64", "gpu_memory_percent = 64")).expect("valid");
    effective.extend(keys_of(&share.to_toml()));
    for path in effective {
        let key = path.rsplit('.').next().expect("a path has a key");
        assert!(DOCS.contains(&format!("| `{key}` |")), "docs/config.md has no row for {path}");
    }
}
