//! Strict JSON objects: every field must be read, so that none is silently ignored.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;
use super::error_code::ErrorCode;

/// What to do with fields that the API does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// Refuse the request, naming the field.
    #[default]
    Refuse,
    /// Serve the request as if the field were not there.
    Ignore,
}

/// The remaining fields of an object. `null` is the same as absent.
#[derive(Debug)]
pub struct Fields {
    fields: Map<String, Value>,
    /// Path prefix of field names in error messages, for example `slo.`; may be empty.
    prefix: String,
    unknown: UnknownFields,
}

impl Fields {
    /// Parses a request body.
    ///
    /// # Errors
    /// 400 if it is not UTF-8, not JSON, or not an object.
    pub fn from_body(body: &[u8], unknown: UnknownFields) -> Result<Fields, ApiError> {
        let refuse = |message: String| ApiError::new(ErrorCode::InvalidJson, message);
        let text = std::str::from_utf8(body).map_err(|error| {
            refuse(format!("the body is not valid UTF-8 at byte {}", error.valid_up_to()))
        })?;
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Fields { fields, prefix: String::new(), unknown }),
            Ok(other) => Err(refuse(format!("the body must be a JSON object and is {}", kind(&other)))),
            Err(error) => {
                let advice = json_advice(text, &error.to_string());
                Err(refuse(format!("the body is not valid JSON: {error}{advice}")))
            }
        }
    }

    /// Opens an object nested in this one, whose full name is `path`.
    ///
    /// # Errors
    /// 400 if it is not an object.
    pub fn nested(&self, path: &str, value: Value) -> Result<Fields, ApiError> {
        match value {
            Value::Object(fields) => Ok(Fields { fields, prefix: format!("{path}."), unknown: self.unknown }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Full name of a field for error messages.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Whether a field is present and not yet taken.
    pub fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// Takes a field of any type.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a required field.
    ///
    /// # Errors
    /// 400 if absent.
    pub fn required(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| {
            let path = self.path(name);
            let message = format!("{path} is missing");
            ApiError::new(ErrorCode::MissingParameter, message).with_param(path)
        })
    }

    /// Takes `true` or `false`.
    ///
    /// # Errors
    /// 400 for any other type or value.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", |value| value.as_bool())
    }

    /// Takes a string.
    ///
    /// # Errors
    /// 400 for any other type or value.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.typed(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// Takes an integer within bounds. `4.0` counts as one: some clients write all numbers that way.
    ///
    /// # Errors
    /// 400 for any other type or value.
    pub fn integer(&mut self, name: &str, bounds: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match whole(&value) {
            Some(number) if bounds.contains(&number) => Ok(Some(number)),
            _ if value.is_number() => Err(out_of_bounds(&self.path(name), "a whole number", &bounds, &value)),
            _ => Err(wrong_type(&self.path(name), "a whole number", &value)),
        }
    }

    /// Takes a number within bounds.
    ///
    /// # Errors
    /// 400 for any other type or value.
    pub fn number(&mut self, name: &str, bounds: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if bounds.contains(&number) => Ok(Some(number)),
            Some(_) => Err(out_of_bounds(&self.path(name), "a number", &bounds, &value)),
            None => Err(wrong_type(&self.path(name), "a number", &value)),
        }
    }

    fn typed<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| wrong_type(&self.path(name), expected, &value))
    }

    /// Rejects unrecognized fields, unless they are to be ignored.
    ///
    /// # Errors
    /// 400 if a field remains.
    pub fn finish(self) -> Result<(), ApiError> {
        if self.unknown == UnknownFields::Ignore {
            return Ok(());
        }
        match self.fields.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let path = self.path(name);
                let message = format!("unknown parameter {path:?}");
                Err(ApiError::new(ErrorCode::UnknownParameter, message).with_param(path))
            }
        }
    }
}

/// The whole number that a JSON number stands for, written with a point or without.
pub fn whole(value: &Value) -> Option<i64> {
    /// Beyond it a float no longer tells whole numbers apart.
    const EXACT_MAX: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && number.abs() <= EXACT_MAX).then_some(number as i64)
    })
}

/// Formats a value for a message, truncated if long.
pub fn brief(value: &Value) -> String {
    const CHARACTERS_MAX: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(CHARACTERS_MAX) {
        None => text,
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// Advice for a JSON error that clients meet, as a clause to append to its message; may be empty.
fn json_advice(text: &str, error: &str) -> &'static str {
    if text.starts_with('\u{feff}') {
        "; it starts with a byte order mark: send it without one"
    } else if ["surrogate", "hex escape"].iter().any(|part| error.contains(part)) {
        "; a \\ud800 to \\udfff stands for half a character: send both halves, or leave it out"
    } else {
        ""
    }
}

/// Error for a field of the wrong JSON type.
pub fn wrong_type(path: &str, expected: &str, value: &Value) -> ApiError {
    ApiError::invalid(path, format!("{path} must be {expected} and is {}", kind(value)))
}

fn out_of_bounds<T: std::fmt::Display>(
    path: &str,
    expected: &str,
    bounds: &RangeInclusive<T>,
    value: &Value,
) -> ApiError {
    let (low, high) = (bounds.start(), bounds.end());
    ApiError::invalid(path, format!("{path} must be {expected} from {low} to {high} and is {value}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::from_body(json.as_bytes(), UnknownFields::Refuse).unwrap()
    }

    fn message<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn bodies_that_are_no_json_object_are_refused() {
        for (body, part) in [
            (&b""[..], "EOF"),
            (b"{\"a\":", "EOF"),
            (b"[1]", "is an array"),
            (b"\"x\"", "is a string"),
            (b"{\"a\":1e999}", "out of range"),
            (b"{\"a\":NaN}", "not valid JSON"),
            (b"{\"a\":\"\\ud800\"}", "not valid JSON"),
            (b"{\"a\":\"\\ud83d!\"}", "stands for half a character: send both halves"),
            (b"\xef\xbb\xbf{}", "starts with a byte order mark: send it without one"),
            (b"{\"a\":\"\xff\"}", "not valid UTF-8 at byte 6"),
        ] {
            let message = message(Fields::from_body(body, UnknownFields::Refuse));
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn nesting_beyond_the_bound_is_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        assert!(
            message(Fields::from_body(deep.as_bytes(), UnknownFields::Refuse)).contains("recursion limit")
        );
    }

    #[test]
    fn messages_name_bounds_and_value() {
        let mut fields = fields(r#"{"a": 3, "b": "x", "c": 1.5, "d": -1}"#);
        assert_eq!(message(fields.number("a", 0.0..=2.0)), "a must be a number from 0 to 2 and is 3");
        assert_eq!(message(fields.number("b", 0.0..=2.0)), "b must be a number and is a string");
        assert_eq!(message(fields.integer("c", 1..=9)), "c must be a whole number from 1 to 9 and is 1.5");
        assert_eq!(message(fields.integer("d", 1..=9)), "d must be a whole number from 1 to 9 and is -1");
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_point() {
        let mut fields = fields(r#"{"a": 4.0, "b": 1e2, "c": -1.0, "d": 4.5, "e": 1e300}"#);
        let mut integer = |name: &str| fields.integer(name, -9..=i64::MAX);
        assert_eq!(integer("a"), Ok(Some(4)));
        assert_eq!(integer("b"), Ok(Some(100)));
        assert_eq!(integer("c"), Ok(Some(-1)));
        assert!(integer("d").is_err() && integer("e").is_err());
    }

    #[test]
    fn unknown_fields_are_ignored_where_the_server_says_so_nested_ones_too() {
        let body = br#"{"typo": 1, "slo": {"x": 1}}"#;
        let mut fields = Fields::from_body(body, UnknownFields::Ignore).unwrap();
        let value = fields.take("slo").unwrap();
        assert_eq!(fields.nested("slo", value).unwrap().finish(), Ok(()));
        assert_eq!(fields.finish(), Ok(()));
    }

    #[test]
    fn remaining_fields_are_rejected_by_full_name_unless_null() {
        assert_eq!(fields(r#"{"a": null}"#).finish(), Ok(()));
        let mut outer = fields(r#"{"slo": {"x": 1}}"#);
        let value = outer.take("slo").unwrap();
        let error = outer.nested("slo", value).unwrap().finish().unwrap_err();
        assert_eq!((error.param.as_deref(), error.code), (Some("slo.x"), ErrorCode::UnknownParameter));
    }
}
