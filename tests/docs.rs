//! The documents' links lead somewhere, and their configurations are valid.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use specserve::config::Config;

/// README.md, CHANGELOG.md and everything in docs/.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).expect("docs/");
    let mut pages: Vec<PathBuf> = docs.map(|entry| entry.expect("an entry").path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.extend(["README.md", "CHANGELOG.md"].map(|name| root.join(name)));
    pages
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Text outside of code blocks, and the code blocks of this language.
fn split(page: &str, language: &str) -> (String, Vec<String>) {
    let (mut prose, mut blocks, mut within) = (String::new(), Vec::new(), None::<(bool, String)>);
    for line in page.lines() {
        match (line.strip_prefix("```"), within.take()) {
            (Some(info), None) => within = Some((info == language, String::new())),
            (Some(_), Some((wanted, block))) => blocks.extend(wanted.then_some(block)),
            (None, Some((wanted, block))) => within = Some((wanted, block + line + "\n")),
            (None, None) => prose.push_str(&format!("{line}\n")),
        }
    }
    (prose, blocks)
}

/// Anchors of a page's headings, as GitHub makes them: a repeated one is numbered.
fn anchors(prose: &str) -> BTreeSet<String> {
    let slug = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|one| one.is_alphanumeric() || [' ', '-', '_'].contains(one));
        kept.map(|one| if one == ' ' { '-' } else { one }).collect()
    };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut number = |slug: String| {
        let earlier = seen.entry(slug.clone()).or_default();
        *earlier += 1;
        if *earlier == 1 { slug } else { format!("{slug}-{}", *earlier - 1) }
    };
    prose.lines().filter(|line| line.starts_with('#')).map(|line| number(slug(line))).collect()
}

/// Targets of the links of a page.
fn links(prose: &str) -> Vec<&str> {
    let starts = prose.split("](").skip(1);
    starts.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).collect()
}

#[test]
fn every_link_within_the_repository_leads_to_a_file_and_a_heading() {
    let mut checked = 0;
    for page in pages() {
        let (prose, _) = split(&read(&page), "");
        for link in links(&prose).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name("").join(file) };
            assert!(target.exists(), "{}: {link} does not exist", page.display());
            if let Some(anchor) = anchor {
                let (prose, _) = split(&read(&target), "");
                assert!(anchors(&prose).contains(anchor), "{}: {link} has no such heading", page.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 100, "only {checked} links were found");
}

#[test]
fn every_configuration_that_a_page_shows_is_valid() {
    let mut checked = 0;
    for page in pages() {
        let (_, blocks) = split(&read(&page), "toml");
        // others show a part of a file
        for block in blocks.iter().filter(|block| block.contains("[target]")) {
            Config::parse(block).unwrap_or_else(|error| panic!("{}: {error}\n{block}", page.display()));
            checked += 1;
        }
    }
    assert!(checked > 0);
}
