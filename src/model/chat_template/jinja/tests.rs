//! `value is …`.

use minijinja::value::ValueKind;
use minijinja::{Environment, State, Value};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment
        .add_test("iterable", |value: &Value| !value.is_none() && minijinja::tests::is_iterable(value));
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", is_callable);
    environment.add_test("filter", |state: &State, name: &Value| {
        name.as_str().is_some_and(|name| minijinja::tests::is_filter(state, name))
    });
    environment.add_test("test", |state: &State, name: &Value| {
        name.as_str().is_some_and(|name| minijinja::tests::is_test(state, name))
    });
}

/// What has a length and items: strings and mappings, too.
fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Bytes | ValueKind::Undefined => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

/// Macros and functions; also what is undefined, which raises only when it is called.
fn is_callable(value: &Value) -> bool {
    value.is_undefined() || value.kind() == ValueKind::Plain && value.as_object().is_some()
}
