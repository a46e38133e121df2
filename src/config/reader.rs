//! The raw stage: a section of the TOML file, taken apart key by key.
//!
//! Serde's derived readers stop at the first mistake. This one goes on: a key with
//! the wrong type or an impossible value is noted and its default is used in its
//! place, and keys that nobody asked for are noted when the section is finished.
//! So an operator sees every problem in one run.

use toml::{Table, Value};

use super::problem::Problem;

/// A key that holds a whole number.
pub(super) struct Integer {
    pub name: &'static str,
    pub default: u64,
    pub min: u64,
    pub max: u64,
}

impl Integer {
    pub const fn new(name: &'static str, default: u64, min: u64, max: u64) -> Integer {
        assert!(min <= default && default <= max && max <= i64::MAX as u64);
        Integer { name, default, min, max }
    }

    /// The bound in words.
    pub fn bound(&self) -> String {
        format!("{} to {}", self.min, self.max)
    }
}

/// A key that holds a list of whole numbers.
pub(super) struct IntegerList {
    pub name: &'static str,
    /// What they are, in words.
    pub what: &'static str,
    pub entries_max: usize,
    pub max: u64,
}

impl IntegerList {
    /// The bound in words.
    pub fn bound(&self) -> String {
        format!("1 to {} {}, each 0 to {}", self.entries_max, self.what, self.max)
    }
}

/// All that was found so far.
#[derive(Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub fn add(
        &mut self,
        path: &str,
        value: Option<String>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(Problem { path: path.to_owned(), value, what: what.into(), advice: advice.into() });
    }

    /// Whether one of the keys is already reported: rules over several keys are
    /// only checked between values that are good by themselves.
    pub fn mention(&self, paths: &[&str]) -> bool {
        self.0.iter().any(|problem| paths.contains(&problem.path.as_str()))
    }

    pub fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

/// One section; keys leave it as they are read.
pub(super) struct Section<'a> {
    path: String,
    table: Table,
    known: Vec<&'static str>,
    problems: &'a mut Problems,
}

impl<'a> Section<'a> {
    pub fn new(path: impl Into<String>, table: Table, problems: &'a mut Problems) -> Section<'a> {
        Section { path: path.into(), table, known: Vec::new(), problems }
    }

    /// Takes the section `name` out of the file; a missing one reads as empty.
    pub fn take(file: &mut Table, name: &str, problems: &'a mut Problems) -> Section<'a> {
        let table = match file.remove(name) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                let advice = format!("write it as a section: [{name}]");
                problems.add(name, Some(other.to_string()), "must be a section", advice);
                Table::new()
            }
        };
        Section::new(name, table, problems)
    }

    pub fn key_path(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    pub fn take_value(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// Notes a problem with the value of `key`.
    pub fn reject(&mut self, key: &str, value: &Value, what: impl Into<String>, advice: impl Into<String>) {
        let path = self.key_path(key);
        self.problems.add(&path, Some(value.to_string()), what, advice);
    }

    /// Notes that `key` has to be given.
    pub fn missing(&mut self, key: &str, advice: impl Into<String>) {
        let path = self.key_path(key);
        self.problems.add(&path, None, "is missing", advice);
    }

    /// A whole number within its bound, or its default.
    pub fn integer(&mut self, key: &Integer) -> u64 {
        self.optional_integer(key).unwrap_or(key.default)
    }

    /// A whole number within its bound, if it is there and good.
    pub fn optional_integer(&mut self, key: &Integer) -> Option<u64> {
        let value = self.take_value(key.name)?;
        let advice = format!("give a whole number, {}", key.bound());
        let Value::Integer(number) = value else {
            self.reject(key.name, &value, "must be a whole number", advice);
            return None;
        };
        match u64::try_from(number) {
            Ok(number) if (key.min..=key.max).contains(&number) => Some(number),
            _ => {
                self.reject(key.name, &value, format!("is out of bounds, {}", key.bound()), advice);
                None
            }
        }
    }

    /// A list of whole numbers within its bounds, if it is there and good.
    pub fn integer_list(&mut self, key: &IntegerList) -> Option<Vec<u64>> {
        let value = self.take_value(key.name)?;
        let advice = format!("give {} in brackets, or leave it out", key.bound());
        let number = |entry: &Value| entry.as_integer().and_then(|number| u64::try_from(number).ok());
        let numbers: Option<Vec<u64>> = value.as_array().and_then(|list| list.iter().map(number).collect());
        let Some(numbers) = numbers else {
            self.reject(key.name, &value, "must be a list of whole numbers", advice);
            return None;
        };
        let good = (1..=key.entries_max).contains(&numbers.len());
        if !good || numbers.iter().any(|&number| number > key.max) {
            self.reject(key.name, &value, format!("is out of bounds, {}", key.bound()), advice);
            return None;
        }
        Some(numbers)
    }

    /// A string, turned into a value by `parse`, whose error says what is wrong;
    /// `advice` says what can be written.
    pub fn parsed<T>(
        &mut self,
        key: &'static str,
        advice: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.take_value(key)?;
        let Value::String(text) = &value else {
            self.reject(key, &value, "must be a string", advice);
            return None;
        };
        match parse(text) {
            Ok(parsed) => Some(parsed),
            Err(what) => {
                self.reject(key, &value, what, advice);
                None
            }
        }
    }

    /// `true` or `false`, if it is there and good.
    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take_value(key)?;
        let boolean = value.as_bool();
        if boolean.is_none() {
            self.reject(key, &value, "must be true or false", "give true or false, without quotes");
        }
        boolean
    }

    /// Notes every key that nobody read.
    pub fn finish(self) {
        let known = self.known.join(", ");
        for (key, value) in &self.table {
            let path = format!("{}.{key}", self.path);
            let advice = format!("remove it; the keys of [{}] are {known}", self.path);
            self.problems.add(&path, Some(value.to_string()), "is not a known key", advice);
        }
    }
}
