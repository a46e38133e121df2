//! Filters of numbers, attributes and markup.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, Value, filters};

use super::{Arguments, invalid, is_float, named, text_of};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("abs", |value: Value| filters::abs(number_of(value)));
    environment.add_filter("round", round);
    environment.add_filter("attr", attr);
    environment.add_filter("filesizeformat", filesizeformat);
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, |value: &Value| Value::from_safe_string(escaped(&text_of(value))));
    }
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("xmlattr", xmlattr);
}

/// Python counts with booleans.
fn number_of(value: Value) -> Value {
    match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        _ => value,
    }
}

/// `int(value)`; the default where that fails.
fn int(value: Value, rest: Arguments) -> Result<Value, Error> {
    let kwargs = named(rest, &["default", "base"])?;
    let default = kwargs.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0));
    let base = kwargs.get::<Option<u32>>("base")?.unwrap_or(10);
    kwargs.assert_all_used()?;
    if let Some(text) = value.as_str() {
        return Ok(int_of_text(text, base).map_or(default, Value::from));
    }
    if is_float(&value) {
        let truncated = f64::try_from(value)?.trunc();
        return Ok(if truncated.is_finite() { Value::from(truncated as i128) } else { default });
    }
    let value = number_of(value);
    Ok(if value.kind() == ValueKind::Number { value } else { default })
}

fn int_of_text(text: &str, base: u32) -> Option<i128> {
    let text = text.trim().replace('_', "");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefixed = match base {
        16 => digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")),
        8 => digits.strip_prefix("0o").or_else(|| digits.strip_prefix("0O")),
        2 => digits.strip_prefix("0b").or_else(|| digits.strip_prefix("0B")),
        _ => None,
    };
    let digits = prefixed.unwrap_or(digits);
    let whole = (2..=36).contains(&base).then(|| i128::from_str_radix(digits, base).ok()).flatten();
    // "3.9" is 3, too
    whole
        .or_else(|| float_of_text(&text).map(|number| number.abs().trunc() as i128))
        .map(|whole| sign * whole)
}

/// `float(value)`; the default where that fails.
fn float(value: Value, rest: Arguments) -> Result<Value, Error> {
    let kwargs = named(rest, &["default"])?;
    let default = kwargs.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0.0));
    kwargs.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => float_of_text(text),
        None => f64::try_from(number_of(value)).ok(),
    };
    Ok(number.map_or(default, Value::from))
}

fn float_of_text(text: &str) -> Option<f64> {
    text.trim().replace('_', "").parse().ok()
}

fn round(value: Value, rest: Arguments) -> Result<Value, Error> {
    let kwargs = named(rest, &["precision", "method"])?;
    let precision = kwargs.get::<Option<i32>>("precision")?;
    let method = kwargs.get::<Option<String>>("method")?;
    kwargs.assert_all_used()?;
    let number = number_of(value);
    if number.is_integer() && !matches!(method.as_deref(), None | Some("common")) {
        // Python's floor and ceil of any number come out as floats here
        return f64::try_from(number).map(Value::from);
    }
    filters::round(
        number,
        precision,
        method.as_deref(),
        Kwargs::from_iter(std::iter::empty::<(String, Value)>()),
    )
}

/// Attributes, which the items of a mapping are not.
fn attr(value: &Value, name: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Map => Ok(Value::UNDEFINED),
        _ => filters::attr(value, name),
    }
}

fn filesizeformat(value: Value, rest: Arguments) -> Result<String, Error> {
    let kwargs = named(rest, &["binary"])?;
    let binary = kwargs.get::<Option<bool>>("binary")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let bytes = match value.as_str() {
        Some(text) => float_of_text(text).ok_or_else(|| invalid(format!("{text:?} is no number")))?,
        None => f64::try_from(number_of(value))?,
    };
    Ok(file_size(bytes, binary))
}

fn file_size(bytes: f64, binary: bool) -> String {
    let (base, prefixes): (f64, _) = match binary {
        true => (1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]),
        false => (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]),
    };
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc());
    }
    let mut size = bytes;
    for prefix in prefixes {
        size /= base;
        if size < base || prefix == prefixes[7] {
            return format!("{size:.1} {prefix}");
        }
    }
    unreachable!("the last prefix takes any size")
}

/// `html.escape`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

fn urlencode(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Map => {
            pairs_encoded(value.try_iter()?.map(|key| Ok((key.clone(), value.get_item(&key)?))))
        }
        ValueKind::Seq | ValueKind::Iterable => pairs_encoded(value.try_iter()?.map(|pair| {
            match (pair.len(), pair.get_item_by_index(0), pair.get_item_by_index(1)) {
                (Some(2), Ok(key), Ok(value)) => Ok((key, value)),
                _ => Err(invalid("urlencode needs pairs")),
            }
        })),
        _ => Ok(percent_encoded(&text_of(value), "/")),
    }
}

fn pairs_encoded(pairs: impl Iterator<Item = Result<(Value, Value), Error>>) -> Result<String, Error> {
    let encoded = |value: &Value| percent_encoded(&text_of(value), "").replace("%20", "+");
    let pairs = pairs.map(|pair| pair.map(|(key, value)| format!("{}={}", encoded(&key), encoded(&value))));
    Ok(pairs.collect::<Result<Vec<_>, _>>()?.join("&"))
}

fn percent_encoded(text: &str, safe: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match char::from(byte) {
            kept if kept.is_ascii_alphanumeric() || "_.-~".contains(kept) || safe.contains(kept) => {
                out.push(kept)
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// ` key="value"` of each item of a mapping that is not none.
fn xmlattr(map: &Value, rest: Arguments) -> Result<String, Error> {
    let kwargs = named(rest, &["autospace"])?;
    let autospace = kwargs.get::<Option<bool>>("autospace")?.unwrap_or(true);
    kwargs.assert_all_used()?;
    if map.kind() != ValueKind::Map {
        return Err(invalid("xmlattr needs a mapping"));
    }
    let mut pairs = Vec::new();
    for key in map.try_iter()? {
        let value = map.get_item(&key)?;
        if !value.is_none() && !value.is_undefined() {
            pairs.push(format!("{}=\"{}\"", escaped(&text_of(&key)), escaped(&text_of(&value))));
        }
    }
    let joined = pairs.join(" ");
    let spaced = autospace && !joined.is_empty();
    Ok(if spaced { format!(" {joined}") } else { joined })
}
