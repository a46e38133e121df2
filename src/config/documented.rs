//! docs/config.md says the defaults and bounds that the code has.

use super::Config;

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
