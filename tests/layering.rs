//! Imports run one way: between rooms (the crate's top-level modules) as the table in
//! docs/ARCHITECTURE.md allows, and inside a room without loops among the modules of a folder.
//!
//! The test reads the sources. An import is any path that names an item of another module, in a
//! `use` or in an expression; it is followed through re-exports to the module that defines the
//! item. A module and its descendants count as one node for its siblings, and a module may use
//! what its ancestors declare. Code under `#[cfg(test)]` may import anything.

mod layers;

use layers::{Sources, imports_between, loops};

/// The rooms and what each may import, read from the table of docs/ARCHITECTURE.md.
fn table() -> Vec<(String, Vec<String>)> {
    let text = std::fs::read_to_string("docs/ARCHITECTURE.md").expect("docs/ARCHITECTURE.md");
    let section = text.split("\n## Layers\n").nth(1).expect("a section \"Layers\"");
    let section = section.split("\n## ").next().expect("split yields one part at least");
    let names = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('/').to_owned()).collect()
    };
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<&str> = line.split('|').collect();
        let room = names(cells[1]).first().expect("a room's name").clone();
        (room, names(cells[3]))
    })
    .collect()
}

#[test]
fn every_room_is_in_the_table_and_the_table_names_no_other() {
    let mut rooms: Vec<String> = Sources::read("src").rooms();
    let mut listed: Vec<String> = table().into_iter().map(|(room, _)| room).collect();
    rooms.sort();
    listed.sort();
    assert_eq!(listed, rooms);
}

#[test]
fn a_room_imports_only_what_the_table_allows() {
    let sources = Sources::read("src");
    let table = table();
    let mut wrong = Vec::new();
    for import in imports_between(&sources) {
        let allowed = table.iter().find(|(room, _)| *room == import.from);
        if !allowed.is_some_and(|(_, rooms)| rooms.contains(&import.to)) {
            wrong.push(import.to_string());
        }
    }
    assert!(wrong.is_empty(), "imports that the table does not allow:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_itself_runs_one_way() {
    let table = table();
    for (place, (room, imports)) in table.iter().enumerate() {
        for import in imports {
            let below = table[..place].iter().any(|(lower, _)| lower == import);
            assert!(below, "{room} may import {import}, which does not stand above it in the table");
        }
    }
}

#[test]
fn the_table_allows_nothing_that_no_room_needs() {
    let sources = Sources::read("src");
    let imports = imports_between(&sources);
    for (room, allowed) in table() {
        for import in allowed {
            let used = imports.iter().any(|seen| seen.from == room && seen.to == import);
            assert!(used, "{room} may import {import} and does not: strike it from the table");
        }
    }
}

#[test]
fn inside_a_room_imports_form_no_loop() {
    let sources = Sources::read("src");
    let found = loops(&sources);
    assert!(found.is_empty(), "loops of imports:\n{}", found.join("\n"));
}

#[test]
fn a_loop_and_an_upward_import_are_noticed() {
    let sources = Sources::of(&[
        ("lib.rs", "pub mod low; pub mod high;"),
        ("low/mod.rs", "mod a; mod b; pub use a::A;"),
        ("low/a.rs", "use super::b::B; pub struct A(B);"),
        ("low/b.rs", "pub struct B; fn f() { let _ = super::A::new(); }"),
        ("high.rs", "#[cfg(test)] mod tests { use crate::missing::X; } fn f(_: crate::low::A) {}"),
    ]);
    assert_eq!(loops(&sources), ["low::a -> low::b -> low::a"]);
    let imports: Vec<String> = imports_between(&sources).iter().map(ToString::to_string).collect();
    assert_eq!(imports, ["high -> low (high.rs: crate::low::A)"]);
}
