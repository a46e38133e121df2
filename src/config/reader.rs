//! Reads the sections of the TOML file key by key.
//!
//! Serde's derived deserializers stop at the first error. This reader continues: a key
//! with a wrong type or an invalid value is reported and replaced by its default, and
//! unknown keys are reported at the end of the section. So operators see every problem
//! in one run.

use toml::{Table, Value};

use super::problem::ConfigProblem;

/// Specification of an integer key.
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

    /// Human-readable bound.
    pub fn bound(&self) -> String {
        format!("{} to {}", self.min, self.max)
    }
}

/// Specification of a key with a number that need not be whole.
pub(super) struct Number {
    pub name: &'static str,
    pub default: f64,
    pub min: f64,
    pub max: f64,
}

impl Number {
    /// Human-readable bound.
    pub fn bound(&self) -> String {
        format!("{} to {}", self.min, self.max)
    }
}

/// Specification of a key with a list of integers.
pub(super) struct IntegerList {
    pub name: &'static str,
    /// What the entries are, in the plural.
    pub what: &'static str,
    pub entries_max: usize,
    pub max: u64,
}

impl IntegerList {
    /// Human-readable bound.
    pub fn bound(&self) -> String {
        format!("1 to {} {}, each 0 to {}", self.entries_max, self.what, self.max)
    }
}

/// Specification of a key with a list of texts.
pub(super) struct TextList {
    pub name: &'static str,
    /// What the entries are, in the plural.
    pub what: &'static str,
    pub entries_max: usize,
}

impl TextList {
    /// Human-readable bound.
    pub fn bound(&self) -> String {
        format!("1 to {} {}", self.entries_max, self.what)
    }
}

/// Problems found so far.
#[derive(Default)]
pub(super) struct Problems(Vec<ConfigProblem>);

impl Problems {
    pub fn add(
        &mut self,
        path: &str,
        value: Option<String>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(ConfigProblem { path: path.to_owned(), value, what: what.into(), advice: advice.into() });
    }

    /// Whether one of the keys has been reported. Rules across keys are checked only between
    /// values that are valid on their own.
    pub fn mention(&self, paths: &[&str]) -> bool {
        self.0.iter().any(|problem| paths.contains(&problem.path.as_str()))
    }

    pub fn into_vec(self) -> Vec<ConfigProblem> {
        self.0
    }
}

/// One section; reading a key removes it.
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

    /// Takes section `name` from the file; a missing section reads as empty.
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

    /// Reports a problem with the value of `key`.
    pub fn reject(&mut self, key: &str, value: &Value, what: impl Into<String>, advice: impl Into<String>) {
        let path = self.key_path(key);
        self.problems.add(&path, Some(value.to_string()), what, advice);
    }

    /// Reports that the required `key` is missing.
    pub fn missing(&mut self, key: &str, advice: impl Into<String>) {
        let path = self.key_path(key);
        self.problems.add(&path, None, "is missing", advice);
    }

    /// Reads an integer within its bound; the default if absent or invalid.
    pub fn integer(&mut self, key: &Integer) -> u64 {
        self.optional_integer(key).unwrap_or(key.default)
    }

    /// Reads an integer within its bound; `None` if absent or invalid.
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

    /// Reads a number within its bound; the default if absent or invalid.
    pub fn number(&mut self, key: &Number) -> f64 {
        let Some(value) = self.take_value(key.name) else { return key.default };
        let number = value.as_float().or_else(|| value.as_integer().map(|number| number as f64));
        let advice = format!("give a number, {}", key.bound());
        match number {
            Some(number) if (key.min..=key.max).contains(&number) => return number,
            Some(_) => {
                self.reject(key.name, &value, format!("is out of bounds, {}", key.bound()), advice);
            }
            None => self.reject(key.name, &value, "must be a number", advice),
        }
        key.default
    }

    /// Reads a list of integers within their bounds; `None` if absent or invalid.
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

    /// Reads a list of texts that `is_good`; `None` if absent or invalid.
    pub fn text_list(&mut self, key: &TextList, is_good: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let value = self.take_value(key.name)?;
        let text = |entry: &Value| entry.as_str().filter(|text| is_good(text)).map(str::to_owned);
        let texts: Option<Vec<String>> = value.as_array().and_then(|list| list.iter().map(text).collect());
        let texts = texts.filter(|texts| (1..=key.entries_max).contains(&texts.len()));
        if texts.is_none() {
            let advice = format!("give {} in brackets, or leave it out", key.bound());
            self.reject(key.name, &value, format!("must be a list of {}", key.what), advice);
        }
        texts
    }

    /// Reads a string and parses it. The error of `parse` states what is wrong; `advice` lists
    /// what is accepted.
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

    /// Reads a boolean; `None` if absent or invalid.
    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take_value(key)?;
        let boolean = value.as_bool();
        if boolean.is_none() {
            self.reject(key, &value, "must be true or false", "give true or false, without quotes");
        }
        boolean
    }

    /// Reports unknown keys.
    pub fn finish(self) {
        let known = self.known.join(", ");
        for (key, value) in &self.table {
            let path = format!("{}.{key}", self.path);
            let advice = format!("remove it; the keys of [{}] are {known}", self.path);
            self.problems.add(&path, Some(value.to_string()), "is not a known key", advice);
        }
    }
}
