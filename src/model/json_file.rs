//! Typed access to the JSON objects that describe a model. Every error names file,
//! key and value.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ModelError;

/// Longest excerpt of a JSON value in an error, in characters.
const SHOWN_CHARS_MAX: usize = 120;

/// An object of a JSON file. `null` counts as absent.
#[derive(Clone, Debug)]
pub(super) struct JsonObject<'a> {
    file: &'a str,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> JsonObject<'a> {
    /// The root object of `file`.
    pub(super) fn root(file: &'a str, value: &'a Value) -> Result<Self, ModelError> {
        match value {
            Value::Object(map) => Ok(Self { file, prefix: String::new(), map }),
            other => Err(ModelError::Value {
                file: file.to_owned(),
                key: "(root)".to_owned(),
                value: shown(other),
                problem: "expected an object".to_owned(),
            }),
        }
    }

    /// The value at `key`; `None` if absent or `null`.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is present, even as `null`.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The keys with their values, in file order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The object at `key`.
    pub(super) fn object(&self, key: &str) -> Result<Option<JsonObject<'a>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(JsonObject { file: self.file, prefix: format!("{}{key}.", self.prefix), map }))
            }
            Some(_) => Err(self.bad(key, "expected an object")),
        }
    }

    /// The whole number at `key`, within `1..=max`.
    pub(super) fn size(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if size >= 1 && size <= max as u64 => Ok(Some(size as usize)),
            _ => Err(self.bad(key, format!("expected a whole number from 1 to {max}"))),
        }
    }

    /// As [`size`](Self::size), for a required key.
    pub(super) fn required_size(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        self.size(key, max)?.ok_or_else(|| self.missing(key))
    }

    /// The positive finite number at `key`.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
            _ => Err(self.bad(key, "expected a number above 0")),
        }
    }

    /// The number at `key`, within `bounds`.
    pub(super) fn number_within(
        &self,
        key: &str,
        bounds: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if bounds.contains(&number) => Ok(Some(number)),
            _ => {
                let (low, high) = (bounds.start(), bounds.end());
                Err(self.bad(key, format!("expected a number from {low} to {high}")))
            }
        }
    }

    /// The finite number at `key`, at least `min`.
    pub(super) fn at_least(&self, key: &str, min: f64) -> Result<Option<f64>, ModelError> {
        match self.positive(key)? {
            Some(number) if number < min => {
                Err(self.bad(key, format!("expected a number of at least {min}")))
            }
            number => Ok(number),
        }
    }

    /// As [`positive`](Self::positive), for a required key.
    pub(super) fn required_positive(&self, key: &str) -> Result<f64, ModelError> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// The boolean at `key`; `absent` if there is none.
    pub(super) fn flag(&self, key: &str, absent: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.bad(key, "expected true or false")),
        }
    }

    /// The string at `key`.
    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "expected a string")),
        }
    }

    /// An error about the value at `key`.
    pub(super) fn bad(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Value {
            file: self.file.to_owned(),
            key: format!("{}{key}", self.prefix),
            value: shown(self.map.get(key).unwrap_or(&Value::Null)),
            problem: problem.into(),
        }
    }

    /// An error about a missing key.
    pub(super) fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey { file: self.file.to_owned(), key: format!("{}{key}", self.prefix) }
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
