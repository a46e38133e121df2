//! Tests, filters and methods as Jinja2 and Python define them, where the template engine's own
//! differ or are missing.
//!
//! Not provided: `urlize`, `wordwrap`, `random` and `lipsum`. Where Jinja2 fails with a type error,
//! the engine may render.

mod filters;
mod methods;
mod sequences;
mod tests;
mod text;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use super::python_json;

/// Widest padding, in characters: a template is not to take the machine's memory.
const WIDTH_MAX: usize = 1 << 16;

/// Sets up `environment`.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    tests::add_to(environment);
    filters::add_to(environment);
    text::add_to(environment);
    sequences::add_to(environment);
    environment.set_unknown_method_callback(methods::call);
    environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.set_formatter(write);
}

/// Writes a value as Python's `str` does.
fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if is_float(value) {
        out.write_str(&text_of(value)).map_err(|_| Error::from(ErrorKind::WriteFailure))
    } else {
        minijinja::escape_formatter(out, state, value)
    }
}

fn is_float(value: &Value) -> bool {
    value.kind() == ValueKind::Number && !value.is_integer()
}

/// Python's `str` of a value.
fn text_of(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if is_float(value) && number.is_finite() => python_json::float(number),
        _ => value.to_string(),
    }
}

/// Arguments of a filter, which may be given by position or by name, by their names.
type Arguments = Rest<ValueOrKwargs>;

fn named(arguments: Arguments, names: &[&str]) -> Result<Kwargs, Error> {
    let mut named: Vec<(String, Value)> = Vec::new();
    for (index, value) in arguments.into_values().into_iter().enumerate() {
        if value.is_kwargs() {
            let kwargs = Kwargs::try_from(value)?;
            for name in kwargs.args() {
                named.push((name.to_owned(), kwargs.get(name)?));
            }
        } else {
            let name = names.get(index).ok_or_else(|| Error::from(ErrorKind::TooManyArguments))?;
            named.push(((*name).to_owned(), value));
        }
    }
    Ok(named.into_iter().collect())
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}
