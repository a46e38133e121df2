//! Filters of sequences and mappings.

use minijinja::{Environment, State, Value, filters};

use super::{Arguments, named};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("map", |state: &mut State, value: Value, rest: Arguments| match value.is_true() {
        true => filters::map(state, value, rest).map(Value::from),
        false => Ok(nothing()),
    });
    add_choice(environment, "select");
    add_choice(environment, "reject");
    add_choice_by_attribute(environment, "selectattr");
    add_choice_by_attribute(environment, "rejectattr");
    environment.add_filter("sort", |state: &mut State, value: Value, rest: Arguments| {
        filters::sort(state, value, named(rest, &["reverse", "case_sensitive", "attribute"])?)
    });
    environment.add_filter("unique", |state: &mut State, value: Value, rest: Arguments| {
        filters::unique(state, value, named(rest, &["case_sensitive", "attribute"])?)
    });
    environment.add_filter("dictsort", |value: &Value, rest: Arguments| {
        filters::dictsort(value, named(rest, &["case_sensitive", "by", "reverse"])?)
    });
}

/// What Jinja2 makes of anything false, iterable or not.
fn nothing() -> Value {
    Value::from(Vec::<Value>::new())
}

fn add_choice(environment: &mut Environment<'static>, name: &'static str) {
    let rejects = name == "reject";
    environment.add_filter(
        name,
        move |state: &mut State, value: Value, test: Option<String>, rest: Arguments| {
            let test = test.map(Into::into);
            match value.is_true() {
                false => Ok(nothing()),
                true if rejects => filters::reject(state, value, test, rest).map(Value::from),
                true => filters::select(state, value, test, rest).map(Value::from),
            }
        },
    );
}

fn add_choice_by_attribute(environment: &mut Environment<'static>, name: &'static str) {
    let rejects = name == "rejectattr";
    environment.add_filter(
        name,
        move |state: &mut State, value: Value, attribute: String, test: Option<String>, rest: Arguments| {
            let (attribute, test) = (attribute.into(), test.map(Into::into));
            match value.is_true() {
                false => Ok(nothing()),
                true if rejects => filters::rejectattr(state, value, attribute, test, rest).map(Value::from),
                true => filters::selectattr(state, value, attribute, test, rest).map(Value::from),
            }
        },
    );
}
