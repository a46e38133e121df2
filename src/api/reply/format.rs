//! How models write reasoning and tool calls.

use super::{llama3, mistral};

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// `{"name": …, "parameters": …}` as the whole answer: Llama 3.
    Llama3,
    /// `[TOOL_CALLS]`, then a list of objects or a name and its arguments: Mistral.
    Mistral,
}

impl ToolFormat {
    /// Recognises the format by what the chat template tells the model.
    pub fn recognise(template: &str) -> Option<ToolFormat> {
        let has = |text: &str| template.contains(text);
        // Qwen3-Coder has the same marker, and XML within
        if has("<tool_call>") && !has("<function=") {
            Some(ToolFormat::Hermes)
        } else if has("[TOOL_CALLS]") {
            Some(ToolFormat::Mistral)
        } else if has(llama3::TAG) || has("\"parameters\": dictionary of argument name") {
            Some(ToolFormat::Llama3)
        } else {
            None
        }
    }

    /// Special tokens that have to be in the text.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            ToolFormat::Hermes => &["<tool_call>", "</tool_call>"],
            ToolFormat::Llama3 => &[llama3::TAG],
            ToolFormat::Mistral => &mistral::MARKERS,
        }
    }
}

/// How a model writes its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// `<think>…</think>`: DeepSeek, Qwen and most others.
    Think,
    /// `[THINK]…[/THINK]`: Mistral.
    Mistral,
}

impl ReasoningFormat {
    /// Recognises the format by the chat template.
    pub fn recognise(template: &str) -> Option<ReasoningFormat> {
        let formats = [ReasoningFormat::Think, ReasoningFormat::Mistral];
        formats.into_iter().find(|format| format.markers().iter().any(|marker| template.contains(marker)))
    }

    /// Beginning and end of the reasoning.
    pub fn markers(self) -> &'static [&'static str; 2] {
        match self {
            ReasoningFormat::Think => &["<think>", "</think>"],
            ReasoningFormat::Mistral => &["[THINK]", "[/THINK]"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_recognised_by_its_markers() {
        for (template, tools, reasoning) in [
            ("{{ '<tool_call>' }} </think>", Some(ToolFormat::Hermes), Some(ReasoningFormat::Think)),
            ("<tool_call>\n<function=x>", None, None),
            ("[TOOL_CALLS] [THINK]", Some(ToolFormat::Mistral), Some(ReasoningFormat::Mistral)),
            ("<|python_tag|>", Some(ToolFormat::Llama3), None),
            (
                "{\"name\": function name, \"parameters\": dictionary of argument name and its value}.",
                Some(ToolFormat::Llama3),
                None,
            ),
            ("{{ messages }}", None, None),
        ] {
            assert_eq!(ToolFormat::recognise(template), tools, "{template}");
            assert_eq!(ReasoningFormat::recognise(template), reasoning, "{template}");
        }
    }
}
