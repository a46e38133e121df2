//! Renders the effective configuration: every key with its value and bound.

use toml::{Table, Value};

use super::reader::{Integer, Number};

/// A key with its effective value.
pub(super) struct Entry {
    key: &'static str,
    value: Option<Value>,
    bound: String,
}

impl Entry {
    pub fn integer(key: &Integer, value: u64) -> Entry {
        Entry { key: key.name, value: Some(number(value)), bound: key.bound() }
    }

    pub fn number(key: &Number, value: f64) -> Entry {
        Entry { key: key.name, value: Some(Value::Float(value)), bound: key.bound() }
    }

    pub fn text(key: &'static str, value: impl Into<String>, bound: impl Into<String>) -> Entry {
        Entry { key, value: Some(Value::String(value.into())), bound: bound.into() }
    }

    pub fn optional(key: &'static str, value: Option<Value>, bound: impl Into<String>) -> Entry {
        Entry { key, value, bound: bound.into() }
    }

    fn line(&self) -> String {
        match &self.value {
            Some(value) => format!("{} = {value}  # {}\n", self.key, self.bound),
            None => format!("# {} is not set  # {}\n", self.key, self.bound),
        }
    }
}

/// A validated number as a TOML value.
pub(super) fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Rendered sections, in file order.
#[derive(Default)]
pub(super) struct Rendered {
    text: String,
    table: Table,
}

impl Rendered {
    /// Adds the section `[name]`.
    pub fn section(&mut self, name: &str, entries: &[Entry]) {
        self.header(&format!("[{name}]"));
        let values = self.lines(entries);
        self.table.insert(name.to_owned(), Value::Table(values));
    }

    /// Adds an element to the array of tables `[[section.key]]`.
    pub fn element(&mut self, section: &str, key: &str, entries: &[Entry]) {
        self.header(&format!("[[{section}.{key}]]"));
        let element = Value::Table(self.lines(entries));
        let Some(Value::Table(section)) = self.table.get_mut(section) else {
            unreachable!("a section is added before its elements")
        };
        match section.entry(key.to_owned()).or_insert_with(|| Value::Array(Vec::new())) {
            Value::Array(elements) => elements.push(element),
            other => unreachable!("{key} is an array, not {other}"),
        }
    }

    fn header(&mut self, header: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(header);
        self.text.push('\n');
    }

    fn lines(&mut self, entries: &[Entry]) -> Table {
        let mut table = Table::new();
        for entry in entries {
            self.text.push_str(&entry.line());
            if let Some(value) = &entry.value {
                table.insert(entry.key.to_owned(), value.clone());
            }
        }
        table
    }

    pub fn into_text(self) -> String {
        self.text
    }

    pub fn into_table(self) -> Table {
        self.table
    }
}
