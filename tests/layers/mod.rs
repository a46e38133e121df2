//! Which module imports which, read from the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use quote::ToTokens;
use syn::{Item, UseTree};

/// A module's path below the crate root; the root's is empty.
type Module = Vec<String>;

/// The crate's modules, without those that exist for tests only.
pub struct Sources {
    modules: BTreeMap<Module, Contents>,
}

/// What one module holds.
#[derive(Default)]
struct Contents {
    /// The file, relative to the folder that was read.
    file: String,
    /// Absolute paths that the module names, macros' arguments included.
    paths: Vec<Module>,
    /// Names that it re-exports, and where they come from.
    exports: BTreeMap<String, Module>,
}

/// One room's import of another's item.
pub struct Import {
    /// The room that imports.
    pub from: String,
    /// The room that is imported from.
    pub to: String,
    file: String,
    path: String,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} ({}: crate::{})", self.from, self.to, self.file, self.path)
    }
}

impl Sources {
    /// Reads a source folder from its `lib.rs` on.
    pub fn read(folder: &str) -> Sources {
        let read = |file: &str| std::fs::read_to_string(Path::new(folder).join(file)).ok();
        Sources::walk(&read)
    }

    /// Sources that are given as `(file, text)`.
    pub fn of(files: &[(&str, &str)]) -> Sources {
        let read =
            |wanted: &str| files.iter().find(|(file, _)| *file == wanted).map(|(_, text)| (*text).to_owned());
        Sources::walk(&read)
    }

    fn walk(read: &dyn Fn(&str) -> Option<String>) -> Sources {
        let mut sources = Sources { modules: BTreeMap::new() };
        sources.add_file(read, Vec::new(), "lib.rs".to_owned());
        sources
    }

    /// The crate's top-level modules.
    pub fn rooms(&self) -> Vec<String> {
        self.modules.keys().filter(|module| module.len() == 1).map(|module| module[0].clone()).collect()
    }

    fn add_file(&mut self, read: &dyn Fn(&str) -> Option<String>, module: Module, file: String) {
        let text = read(&file).unwrap_or_else(|| panic!("{file} is missing"));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        self.modules.insert(module.clone(), Contents { file, ..Contents::default() });
        self.add_items(read, &module, &parsed.items);
    }

    fn add_items(&mut self, read: &dyn Fn(&str) -> Option<String>, module: &Module, items: &[Item]) {
        let children: BTreeSet<String> = items.iter().filter_map(child_name).collect();
        for item in items {
            if is_for_tests(item) {
                continue;
            }
            match item {
                Item::Mod(child) => {
                    let mut path = module.clone();
                    path.push(child.ident.to_string());
                    match &child.content {
                        Some((_, items)) => {
                            let file = self.modules[module].file.clone();
                            self.modules.insert(path.clone(), Contents { file, ..Contents::default() });
                            self.add_items(read, &path, items);
                        }
                        None => {
                            let flat = format!("{}.rs", path.join("/"));
                            let folder = format!("{}/mod.rs", path.join("/"));
                            let file = if read(&flat).is_some() { flat } else { folder };
                            self.add_file(read, path, file);
                        }
                    }
                }
                Item::Use(import) => {
                    let is_export = !matches!(import.vis, syn::Visibility::Inherited);
                    for (name, mut path) in flatten(&import.tree, Vec::new()) {
                        if children.contains(&path[0]) {
                            path.insert(0, "self".to_owned());
                        }
                        let Some(path) = absolute(module, &path) else { continue };
                        let contents = self.modules.get_mut(module).expect("added above");
                        if is_export {
                            contents.exports.insert(name, path.clone());
                        }
                        contents.paths.push(path);
                    }
                }
                _ => {
                    let mut words = Vec::new();
                    scan(without_tests(item).into_token_stream(), &mut words);
                    let paths = named_paths(&words).into_iter().filter_map(|path| absolute(module, &path));
                    self.modules.get_mut(module).expect("added above").paths.extend(paths);
                }
            }
        }
    }

    /// The module that defines what `path` names.
    fn definer(&self, path: &[String]) -> Option<Module> {
        let mut path = path.to_vec();
        // as many re-exports as a chain can sensibly have
        for _ in 0..8 {
            let depth = (0..=path.len()).rev().find(|&depth| self.modules.contains_key(&path[..depth]))?;
            let contents = &self.modules[&path[..depth]];
            let target = path.get(depth).and_then(|name| contents.exports.get(name));
            match target {
                Some(target) => {
                    let rest = path.split_off(depth + 1);
                    path = target.iter().cloned().chain(rest).collect();
                }
                None => return Some(path[..depth].to_vec()),
            }
        }
        None
    }

    /// Every import between two modules, with its place in the sources.
    fn imports(&self) -> impl Iterator<Item = (&Module, Module, &str, &Module)> {
        self.modules.iter().flat_map(move |(module, contents)| {
            contents
                .paths
                .iter()
                .filter_map(move |path| Some((module, self.definer(path)?, contents.file.as_str(), path)))
        })
    }
}

/// Imports between rooms.
pub fn imports_between(sources: &Sources) -> Vec<Import> {
    let mut imports = Vec::new();
    for (from, to, file, path) in sources.imports() {
        let (Some(from), Some(to)) = (from.first(), to.first()) else { continue };
        if from != to {
            let (file, path) = (file.to_owned(), path.join("::"));
            imports.push(Import { from: from.clone(), to: to.clone(), file, path });
        }
    }
    imports
}

/// One line for each loop among the children of one module.
pub fn loops(sources: &Sources) -> Vec<String> {
    let mut edges: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (from, to, _, _) in sources.imports() {
        let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
        if let (Some(a), Some(b)) = (from.get(common), to.get(common)) {
            let siblings = edges.entry(from[..common].to_vec()).or_default();
            siblings.entry(a.clone()).or_default().insert(b.clone());
        }
    }
    let mut found = Vec::new();
    for (parent, graph) in &edges {
        let mut done = BTreeSet::new();
        for start in graph.keys() {
            search(graph, &mut vec![start.clone()], &mut done, parent, &mut found);
        }
    }
    found
}

/// Depth first; reports the loop that closes at the end of `trail`, once.
fn search(
    graph: &BTreeMap<String, BTreeSet<String>>,
    trail: &mut Vec<String>,
    done: &mut BTreeSet<String>,
    parent: &Module,
    found: &mut Vec<String>,
) {
    let here = trail.last().expect("a trail has a start").clone();
    if done.contains(&here) {
        return;
    }
    for next in graph.get(&here).into_iter().flatten() {
        if let Some(first) = trail.iter().position(|seen| seen == next) {
            let name = |child: &String| parent.iter().chain([child]).cloned().collect::<Vec<_>>().join("::");
            let members: Vec<String> = trail[first..].iter().chain([next]).map(name).collect();
            found.push(members.join(" -> "));
        } else {
            trail.push(next.clone());
            search(graph, trail, done, parent, found);
            trail.pop();
        }
    }
    done.insert(here);
}

fn child_name(item: &Item) -> Option<String> {
    match item {
        Item::Mod(child) => Some(child.ident.to_string()),
        _ => None,
    }
}

fn attributes(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_test_attribute(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.meta.to_token_stream().to_string().contains("(test)")
}

fn is_for_tests(item: &Item) -> bool {
    attributes(item).iter().any(is_test_attribute)
}

/// The item without those functions of an `impl` that exist for tests only.
fn without_tests(item: &Item) -> Item {
    let mut item = item.clone();
    if let Item::Impl(block) = &mut item {
        block.items.retain(|member| {
            !matches!(member, syn::ImplItem::Fn(function) if function.attrs.iter().any(is_test_attribute))
        });
    }
    item
}

/// The names that a `use` brings in, each with its whole path.
fn flatten(tree: &UseTree, mut prefix: Module) -> Vec<(String, Module)> {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix)
        }
        UseTree::Group(group) => group.items.iter().flat_map(|tree| flatten(tree, prefix.clone())).collect(),
        UseTree::Name(name) if name.ident == "self" => {
            let last = prefix.last().cloned().unwrap_or_default();
            vec![(last, prefix)]
        }
        UseTree::Name(name) => {
            prefix.push(name.ident.to_string());
            vec![(name.ident.to_string(), prefix)]
        }
        UseTree::Rename(name) => {
            prefix.push(name.ident.to_string());
            vec![(name.rename.to_string(), prefix)]
        }
        UseTree::Glob(_) => vec![("*".to_owned(), prefix)],
    }
}

/// A path that starts with `crate`, `self` or `super`, from the crate root; others name items of
/// this module or of another crate.
fn absolute(module: &Module, path: &[String]) -> Option<Module> {
    let mut base = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" | "super" => module.clone(),
        _ => return None,
    };
    let mut rest = path;
    while let Some(first) = rest.first() {
        match first.as_str() {
            "crate" | "self" => {}
            "super" => {
                base.pop();
            }
            _ => break,
        }
        rest = &rest[1..];
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// All identifiers and punctuation, groups opened up.
fn scan(tokens: proc_macro2::TokenStream, words: &mut Vec<String>) {
    for token in tokens {
        match token {
            proc_macro2::TokenTree::Group(group) => {
                words.push("(".to_owned());
                scan(group.stream(), words);
                words.push(")".to_owned());
            }
            other => words.push(other.to_string()),
        }
    }
}

/// Paths of the form `crate::a::b` among the words.
fn named_paths(words: &[String]) -> Vec<Module> {
    let is_name = |word: &String| word.starts_with(|first: char| first.is_alphabetic() || first == '_');
    let mut paths = Vec::new();
    let mut at = 0;
    while at < words.len() {
        if matches!(words[at].as_str(), "crate" | "super" | "self") {
            let mut path = vec![words[at].clone()];
            while at + 3 < words.len()
                && words[at + 1] == ":"
                && words[at + 2] == ":"
                && is_name(&words[at + 3])
            {
                path.push(words[at + 3].clone());
                at += 3;
            }
            if path.len() > 1 {
                paths.push(path);
            }
        }
        at += 1;
    }
    paths
}
