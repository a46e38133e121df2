//! What the API is told of the target's chats, by the configuration and the chat template.

use crate::api::{self, ChatFeatures};
use crate::config::{ReasoningFormat, TargetConfig, ToolFormat};
use crate::model::ChatTemplate;

/// Describes the chats of a target.
pub(super) fn of(config: &TargetConfig, template: Option<&ChatTemplate>) -> ChatFeatures {
    let source = template.map(ChatTemplate::source_with_tools).unwrap_or_default();
    ChatFeatures {
        tool_format: match config.tool_format {
            ToolFormat::Auto => api::ToolFormat::recognise(&source),
            ToolFormat::None => None,
            ToolFormat::Hermes => Some(api::ToolFormat::Hermes),
            ToolFormat::Llama3 => Some(api::ToolFormat::Llama3),
            ToolFormat::Mistral => Some(api::ToolFormat::Mistral),
        },
        reasoning_format: match config.reasoning_format {
            ReasoningFormat::Auto => api::ReasoningFormat::recognise(&source),
            ReasoningFormat::None => None,
            ReasoningFormat::Think => Some(api::ReasoningFormat::Think),
            ReasoningFormat::Mistral => Some(api::ReasoningFormat::Mistral),
        },
        variables: template.map(ChatTemplate::variables).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn features(keys: &str, template: &str) -> ChatFeatures {
        let config = Config::parse(&format!("[target]\nmodel = \"embedded:tiny\"\n{keys}")).expect("valid");
        let templates = [("default".to_owned(), template.to_owned())];
        let template = ChatTemplate::compile(templates, Vec::new()).expect("it compiles");
        of(&config.target, Some(&template))
    }

    const QWEN: &str = "{% if tools %}<tool_call>{% endif %}{% if enable_thinking %}<think>{% endif %}";

    #[test]
    fn formats_and_variables_are_those_of_the_template() {
        let features = features("", QWEN);
        assert_eq!(features.tool_format, Some(api::ToolFormat::Hermes));
        assert_eq!(features.reasoning_format, Some(api::ReasoningFormat::Think));
        let variables = ["enable_thinking", "tools"].map(str::to_owned);
        assert_eq!(features.variables, variables.into_iter().collect());
    }

    #[test]
    fn the_configuration_goes_before_the_template() {
        let given = features("tool_format = \"mistral\"\nreasoning_format = \"mistral\"", QWEN);
        assert_eq!(given.tool_format, Some(api::ToolFormat::Mistral));
        assert_eq!(given.reasoning_format, Some(api::ReasoningFormat::Mistral));
        let none = features("tool_format = \"none\"\nreasoning_format = \"none\"", QWEN);
        assert_eq!((none.tool_format, none.reasoning_format), (None, None));
    }
}
