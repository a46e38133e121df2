//! Filters of text.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Value, filters};

use super::super::python_json::DEPTH_MAX;
use super::{Arguments, WIDTH_MAX, invalid, named, text_of};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("string", |value: &Value| match value.as_str() {
        Some(_) => value.clone(),
        None => Value::from(text_of(value)),
    });
    environment.add_filter("center", |value: &Value, rest: Arguments| {
        let kwargs = named(rest, &["width"])?;
        let width = kwargs.get::<Option<usize>>("width")?.unwrap_or(80).min(WIDTH_MAX);
        kwargs.assert_all_used()?;
        Ok::<_, Error>(centered(&text_of(value), width, ' '))
    });
    environment.add_filter("wordcount", |value: &Value| words(&text_of(value)));
    environment
        .add_filter("striptags", |value: &Value| minijinja_contrib::filters::striptags(text_of(value)));
    environment.add_filter("indent", indent);
    environment.add_filter("truncate", truncate);
    environment.add_filter("pprint", pprint);
}

/// Longest value that Python pretty-prints in one line, in characters.
const PPRINT_LINE_MAX: usize = 80;

/// Python's `pformat` of what fits one line; longer values are broken at other places.
fn pprint(value: &Value) -> Result<String, Error> {
    let line = match value.kind() {
        ValueKind::Map | ValueKind::Seq => sorted_by_key(value, 0)?.to_string(),
        _ => return Ok(filters::pprint(value)),
    };
    Ok(if line.chars().count() <= PPRINT_LINE_MAX { line } else { filters::pprint(value) })
}

fn sorted_by_key(value: &Value, depth: usize) -> Result<Value, Error> {
    match value.kind() {
        _ if depth > DEPTH_MAX => Err(invalid(format!("is nested more than {DEPTH_MAX} levels deep"))),
        ValueKind::Map => {
            let pairs = value.try_iter()?.map(|key| {
                let item = value.get_item(&key)?;
                Ok((key, sorted_by_key(&item, depth + 1)?))
            });
            let mut pairs = pairs.collect::<Result<Vec<(Value, Value)>, Error>>()?;
            pairs.sort_by_key(|(key, _)| text_of(key));
            Ok(Value::from_pairs(pairs))
        }
        ValueKind::Seq => value.try_iter()?.map(|item| sorted_by_key(&item, depth + 1)).collect(),
        _ => Ok(value.clone()),
    }
}

/// Runs of letters, digits and underscores.
fn words(text: &str) -> usize {
    let in_word = |character: char| character.is_alphanumeric() || character == '_';
    text.split(|character| !in_word(character)).filter(|word| !word.is_empty()).count()
}

/// `str.center`: an odd space goes to the left if the width is odd, too.
pub(super) fn centered(text: &str, width: usize, fill: char) -> String {
    let room = width.saturating_sub(text.chars().count());
    let left = room / 2 + (room & width & 1);
    let fill = |count| std::iter::repeat_n(fill, count).collect::<String>();
    format!("{}{text}{}", fill(left), fill(room - left))
}

fn indent(value: &Value, rest: Arguments) -> Result<String, Error> {
    let kwargs = named(rest, &["width", "first", "blank"])?;
    let width = kwargs.get::<Option<Value>>("width")?.unwrap_or_else(|| Value::from(4));
    let first = kwargs.get::<Option<bool>>("first")?.unwrap_or(false);
    let blank = kwargs.get::<Option<bool>>("blank")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let indentation = match width.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(width)?.min(WIDTH_MAX)),
    };
    // Jinja2 adds a line end, and so keeps the last line even if it is empty
    let text = text_of(value) + "\n";
    let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
    let mut out = String::new();
    for (index, line) in lines.enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let indents = if index == 0 { first } else { blank || !line.is_empty() };
        if indents {
            out.push_str(&indentation);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn truncate(value: &Value, rest: Arguments) -> Result<String, Error> {
    let kwargs = named(rest, &["length", "killwords", "end", "leeway"])?;
    let length = kwargs.get::<Option<usize>>("length")?.unwrap_or(255);
    let killwords = kwargs.get::<Option<bool>>("killwords")?.unwrap_or(false);
    let end = kwargs.get::<Option<String>>("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = kwargs.get::<Option<usize>>("leeway")?.unwrap_or(5);
    kwargs.assert_all_used()?;
    let count = match value.as_str() {
        Some(text) => Some(text.chars().count()),
        None if value.is_undefined() => Some(0),
        None => value.len(),
    };
    let count = count.ok_or_else(|| invalid("truncate needs a string"))?;
    let Some(room) = length.checked_sub(end.chars().count()) else {
        return Err(invalid(format!("expected a length of at least that of {end:?}, got {length}")));
    };
    if count <= length + leeway {
        return Ok(text_of(value));
    }
    let text = value.as_str().ok_or_else(|| invalid("truncate needs a string"))?;
    let kept: String = text.chars().take(room).collect();
    let kept = match kept.rsplit_once(' ') {
        Some((words, _)) if !killwords => words.to_owned(),
        _ => kept,
    };
    Ok(kept + &end)
}
