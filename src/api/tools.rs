//! `tools`, `tool_choice` and `parallel_tool_calls`.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, brief, wrong_type};
use crate::grammar::FunctionCall;

/// Most tools of a request.
pub const TOOLS_MAX: usize = 128;

/// Longest name of a function, in characters.
pub const NAME_CHARACTERS_MAX: usize = 64;

/// The functions that the model may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tools {
    /// Descriptions for the chat template; empty: none.
    pub list: Vec<Value>,
    /// Whether the model may call more than one at once.
    pub parallel: bool,
    /// Whether the model must call one.
    pub choice: Choice,
}

/// Whether the model must call a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// It may.
    #[default]
    Auto,
    /// It must, any of them.
    Required,
    /// It must call this one, once.
    Named(String),
}

impl Tools {
    /// Parses the fields. With the choice `none` the model is shown no tools.
    ///
    /// # Errors
    /// 400 for a tool or a choice that is not valid or not supported.
    pub fn parse(fields: &mut Fields) -> Result<Tools, ApiError> {
        let list = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) => tools,
            Some(other) => return Err(wrong_type("tools", "an array", &other)),
        };
        if list.len() > TOOLS_MAX {
            let message = format!("tools may have at most {TOOLS_MAX} tools and has {}", list.len());
            return Err(ApiError::invalid("tools", message));
        }
        let read = |(at, tool)| function(fields, &format!("tools[{at}]"), tool);
        let list = list.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        let tools = Tools { list, parallel, choice: Choice::Auto };
        match tools.choice(fields)? {
            Some(Choice::Named(name)) => Ok(Tools { parallel: false, choice: Choice::Named(name), ..tools }),
            Some(choice) => Ok(Tools { choice, ..tools }),
            None => Ok(Tools::default()),
        }
    }

    /// Whether the output must be calls.
    pub fn are_forced(&self) -> bool {
        self.choice != Choice::Auto
    }

    /// The functions that an output which must be calls may call, each with the field that has its
    /// parameters.
    pub fn forced(&self) -> Vec<(String, FunctionCall)> {
        let wanted = |name: &str| match &self.choice {
            Choice::Named(wanted) => wanted == name,
            Choice::Auto | Choice::Required => true,
        };
        let call = |(at, name): (usize, &str)| {
            let function = &self.list[at]["function"];
            let mut parameters = function.get("parameters").cloned().unwrap_or_else(|| json!({}));
            parameters["type"] = json!("object");
            let field = format!("tools[{at}].function.parameters");
            wanted(name).then(|| (field, FunctionCall { name: name.to_owned(), parameters }))
        };
        self.names().enumerate().filter_map(call).collect()
    }

    /// Names of the functions.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().filter_map(|tool| tool["function"]["name"].as_str())
    }

    /// The choice; `None` if the model may call nothing.
    fn choice(&self, fields: &mut Fields) -> Result<Option<Choice>, ApiError> {
        let Some(value) = fields.take("tool_choice") else { return Ok(Some(Choice::Auto)) };
        let choice = match &value {
            Value::String(word) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => Choice::Auto,
                "required" => Choice::Required,
                _ => return Err(unknown_choice(&value)),
            },
            Value::Object(_) => Choice::Named(self.named(fields, value)?),
            _ => return Err(unknown_choice(&value)),
        };
        if self.list.is_empty() {
            return Err(ApiError::unsupported("tool_choice", "tool_choice may be set only with tools"));
        }
        Ok(Some(choice))
    }

    /// The name of a function that must be called, which is one of the tools.
    fn named(&self, fields: &Fields, choice: Value) -> Result<String, ApiError> {
        let mut choice = fields.nested("tool_choice", choice)?;
        check_type(&mut choice)?;
        let function = choice.required("function")?;
        let mut function = fields.nested("tool_choice.function", function)?;
        let name = function.required("name")?;
        function.finish()?;
        choice.finish()?;
        if let Some(known) = self.names().find(|known| name == *known) {
            return Ok(known.to_owned());
        }
        let message = format!("tool_choice.function.name must name one of tools and is {}", brief(&name));
        Err(ApiError::invalid("tool_choice.function.name", message))
    }
}

fn unknown_choice(value: &Value) -> ApiError {
    let message = format!(
        "tool_choice must be \"auto\", \"none\", \"required\" or an object that names a function and is {}",
        brief(value)
    );
    ApiError::invalid("tool_choice", message)
}

fn check_type(fields: &mut Fields) -> Result<(), ApiError> {
    let kind = fields.required("type")?;
    if kind == "function" {
        return Ok(());
    }
    let path = fields.path("type");
    Err(ApiError::unsupported(path.clone(), format!("{path} must be \"function\" and is {}", brief(&kind))))
}

/// Checks a tool and returns it as templates read it.
fn function(fields: &Fields, path: &str, tool: Value) -> Result<Value, ApiError> {
    let mut shown = tool.clone();
    let mut tool = fields.nested(path, tool)?;
    check_type(&mut tool)?;
    let function = tool.required("function")?;
    tool.finish()?;
    let mut function = fields.nested(&format!("{path}.function"), function)?;
    let name = function.required("name")?;
    if !name.as_str().is_some_and(is_name) {
        let path = function.path("name");
        let message = format!(
            "{path} must be 1 to {NAME_CHARACTERS_MAX} of a-z, A-Z, 0-9, _ and - and is {}",
            brief(&name)
        );
        return Err(ApiError::invalid(path, message));
    }
    function.string("description")?;
    function.boolean("strict")?;
    if let Some(other) = function.take("parameters").filter(|parameters| !parameters.is_object()) {
        return Err(wrong_type(&function.path("parameters"), "an object", &other));
    }
    function.finish()?;
    // no model is told of it
    if let Some(function) = shown["function"].as_object_mut() {
        function.shift_remove("strict");
    }
    Ok(shown)
}

fn is_name(name: &str) -> bool {
    (1..=NAME_CHARACTERS_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fields::UnknownFields;

    fn parse(body: &Value) -> Result<Tools, ApiError> {
        let mut fields = Fields::from_body(body.to_string().as_bytes(), UnknownFields::Refuse)?;
        let tools = Tools::parse(&mut fields)?;
        fields.finish()?;
        Ok(tools)
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    }

    #[test]
    fn tools_reach_the_template_as_they_are_but_for_strict() {
        let mut strict = tool("f");
        strict["function"]["strict"] = json!(true);
        let tools = parse(&json!({"tools": [strict, tool("a-Z_0")], "tool_choice": "auto"})).unwrap();
        assert_eq!(
            tools,
            Tools { list: vec![tool("f"), tool("a-Z_0")], parallel: true, choice: Choice::Auto }
        );
        assert_eq!(tools.names().collect::<Vec<_>>(), ["f", "a-Z_0"]);
    }

    #[test]
    fn with_the_choice_none_there_are_no_tools() {
        assert_eq!(parse(&json!({"tools": [tool("f")], "tool_choice": "none"})), Ok(Tools::default()));
        assert_eq!(parse(&json!({"tool_choice": "none"})), Ok(Tools::default()));
    }

    #[test]
    fn a_tool_that_is_not_valid_is_refused_with_its_place() {
        let long = "x".repeat(NAME_CHARACTERS_MAX + 1);
        for (tool, param) in [
            (json!(1), "tools[1]"),
            (json!({"function": {"name": "g"}}), "tools[1].type"),
            (json!({"type": "custom", "custom": {}}), "tools[1].type"),
            (json!({"type": "function"}), "tools[1].function"),
            (json!({"type": "function", "function": {}}), "tools[1].function.name"),
            (tool(""), "tools[1].function.name"),
            (tool("a b"), "tools[1].function.name"),
            (tool(&long), "tools[1].function.name"),
            (
                json!({"type": "function", "function": {"name": "g", "parameters": []}}),
                "tools[1].function.parameters",
            ),
            (
                json!({"type": "function", "function": {"name": "g", "description": 1}}),
                "tools[1].function.description",
            ),
            (json!({"type": "function", "function": {"name": "g", "x": 1}}), "tools[1].function.x"),
        ] {
            let error = parse(&json!({"tools": [self::tool("f"), tool]})).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
    }

    #[test]
    fn there_may_be_no_more_tools_than_the_bound() {
        let tools = |count: usize| parse(&json!({"tools": vec![tool("f"); count]}));
        assert!(tools(TOOLS_MAX).is_ok());
        let message = tools(TOOLS_MAX + 1).unwrap_err().message;
        assert_eq!(message, "tools may have at most 128 tools and has 129");
    }

    #[test]
    fn a_choice_that_is_unknown_or_without_tools_is_refused() {
        let named = |name: &str| json!({"type": "function", "function": {"name": name}});
        for (choice, part) in [
            (named("g"), "must name one of tools and is \"g\""),
            (json!("always"), "and is \"always\""),
            (json!({"type": "custom"}), "must be \"function\""),
            (json!(3), "and is 3"),
        ] {
            let error = parse(&json!({"tools": [tool("f")], "tool_choice": choice})).unwrap_err();
            assert!(error.message.contains(part), "{error}");
        }
        let error = parse(&json!({"tool_choice": "auto"})).unwrap_err();
        assert_eq!(error.message, "tool_choice may be set only with tools");
    }

    #[test]
    fn a_forced_output_may_call_all_functions_or_the_one_that_is_named() {
        let tools = |choice| parse(&json!({"tools": [tool("f"), tool("g")], "tool_choice": choice})).unwrap();
        let forced = |tools: &Tools| -> Vec<String> {
            tools.forced().into_iter().map(|(field, call)| field + " " + &call.name).collect()
        };
        let any = tools(json!("required"));
        assert!(any.are_forced() && any.parallel);
        assert_eq!(forced(&any), ["tools[0].function.parameters f", "tools[1].function.parameters g"]);
        let one = tools(json!({"type": "function", "function": {"name": "g"}}));
        assert!(one.are_forced() && !one.parallel, "a named function is called once");
        assert_eq!(forced(&one), ["tools[1].function.parameters g"]);
        assert!(!tools(json!("auto")).are_forced());
    }

    #[test]
    fn the_docs_give_the_bounds_of_tools() {
        let docs = include_str!("../../docs/api.md");
        for bound in [format!("up to {TOOLS_MAX} of"), format!("1 to {NAME_CHARACTERS_MAX} of")] {
            assert!(docs.contains(&bound), "docs/api.md does not say {bound}");
        }
    }
}
