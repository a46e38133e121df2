//! Methods of Python's strings and lists that the engine's own compatibility layer lacks.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::text::centered;
use super::{WIDTH_MAX, invalid, text_of};

/// Calls a method that the engine does not know.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq => list_method(value, method, args)?,
        ValueKind::Map if method == "copy" && args.is_empty() => Some(value.clone()),
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, method, args),
    }
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "title" => title(text),
        "swapcase" => swapcase(text),
        "casefold" => text.to_lowercase().replace('ß', "ss"),
        "removeprefix" => {
            affix(args)?.map_or(text, |prefix| text.strip_prefix(prefix).unwrap_or(text)).to_owned()
        }
        "removesuffix" => {
            affix(args)?.map_or(text, |suffix| text.strip_suffix(suffix).unwrap_or(text)).to_owned()
        }
        "ljust" | "rjust" | "center" => padded(text, method, args)?,
        "zfill" => zfill(text, from_args::<(usize,)>(args)?.0),
        "rsplit" => return rsplit(text, args).map(Some),
        "partition" | "rpartition" => return partition(text, method, args).map(Some),
        "index" | "rindex" => return index(text, method, args).map(Some),
        "isdecimal" => {
            return Ok(Some((!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into()));
        }
        "istitle" => return Ok(Some((text.chars().any(char::is_alphabetic) && title(text) == text).into())),
        _ => return Ok(None),
    };
    Ok(Some(Value::from(result)))
}

/// `str.title`: every run of letters begins with a capital, after an apostrophe, too.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for character in text.chars() {
        match in_word {
            true => out.extend(character.to_lowercase()),
            false => out.extend(character.to_uppercase()),
        }
        in_word = character.is_alphabetic();
    }
    out
}

fn swapcase(text: &str) -> String {
    let swapped = |character: char| match character.is_uppercase() {
        true => character.to_lowercase().collect::<String>(),
        false => character.to_uppercase().collect(),
    };
    text.chars().map(swapped).collect()
}

fn affix(args: &[Value]) -> Result<Option<&str>, Error> {
    from_args::<(&str,)>(args).map(|(affix,)| Some(affix))
}

fn padded(text: &str, method: &str, args: &[Value]) -> Result<String, Error> {
    let (width, fill): (usize, Option<char>) = from_args(args)?;
    let (width, fill) = (width.min(WIDTH_MAX), fill.unwrap_or(' '));
    let padding =
        || std::iter::repeat_n(fill, width.saturating_sub(text.chars().count())).collect::<String>();
    Ok(match method {
        "ljust" => text.to_owned() + &padding(),
        "rjust" => padding() + text,
        _ => centered(text, width, fill),
    })
}

fn zfill(text: &str, width: usize) -> String {
    let zeros = "0".repeat(width.min(WIDTH_MAX).saturating_sub(text.chars().count()));
    match text.strip_prefix(['+', '-']) {
        Some(digits) => format!("{}{zeros}{digits}", &text[..1]),
        None => zeros + text,
    }
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most =
        most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) => text.rsplitn(most, separator).collect(),
        None => rsplit_at_whitespace(text, most),
    };
    parts.reverse();
    Ok(Value::from_iter(parts))
}

fn rsplit_at_whitespace(text: &str, most: usize) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), text.trim_end());
    while !rest.is_empty() {
        let cut = rest.char_indices().rev().find(|(_, c)| c.is_whitespace());
        match cut {
            Some((at, space)) if parts.len() + 1 < most => {
                parts.push(&rest[at + space.len_utf8()..]);
                rest = rest[..at].trim_end();
            }
            _ if parts.len() + 1 < most => {
                parts.push(rest);
                break;
            }
            _ => {
                parts.push(rest.trim_start());
                break;
            }
        }
    }
    parts
}

fn partition(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let parts = match method {
        "partition" => text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b]),
        _ => text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]),
    };
    Ok(Value::from_iter(parts))
}

fn index(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (part,): (&str,) = from_args(args)?;
    let at = if method == "index" { text.find(part) } else { text.rfind(part) };
    let at = at.ok_or_else(|| invalid("substring not found"))?;
    Ok(Value::from(text[..at].chars().count()))
}

fn list_method(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" if args.is_empty() => Ok(Some(list.try_iter()?.collect())),
        "index" => {
            let (item,): (Value,) = from_args(args)?;
            let at = list.try_iter()?.position(|other| other == item);
            let missing =
                || Error::new(ErrorKind::InvalidOperation, format!("{} is not in list", text_of(&item)));
            at.map(|at| Some(Value::from(at))).ok_or_else(missing)
        }
        _ => Ok(None),
    }
}
