//! How the target writes tool calls and reasoning.

/// How the target writes tool calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolFormat {
    /// As its chat template tells it to.
    #[default]
    Auto,
    /// Calls are not read, and requests with tools are refused.
    None,
    /// As Hermes and Qwen.
    Hermes,
    /// As Llama 3.
    Llama3,
    /// As Mistral.
    Mistral,
}

impl ToolFormat {
    pub(super) fn name(self) -> &'static str {
        match self {
            ToolFormat::Auto => "auto",
            ToolFormat::None => "none",
            ToolFormat::Hermes => "hermes",
            ToolFormat::Llama3 => "llama3",
            ToolFormat::Mistral => "mistral",
        }
    }

    pub(super) fn parse(text: &str) -> Result<ToolFormat, String> {
        let known =
            [ToolFormat::Auto, ToolFormat::None, ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral];
        known.into_iter().find(|format| format.name() == text).ok_or_else(|| "is not a format".to_owned())
    }
}

/// How the target writes its reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// As its chat template reads it.
    #[default]
    Auto,
    /// Reasoning is not separated from the answer.
    None,
    /// Between `<think>` and `</think>`.
    Think,
    /// Between `[THINK]` and `[/THINK]`.
    Mistral,
}

impl ReasoningFormat {
    pub(super) fn name(self) -> &'static str {
        match self {
            ReasoningFormat::Auto => "auto",
            ReasoningFormat::None => "none",
            ReasoningFormat::Think => "think",
            ReasoningFormat::Mistral => "mistral",
        }
    }

    pub(super) fn parse(text: &str) -> Result<ReasoningFormat, String> {
        let known =
            [ReasoningFormat::Auto, ReasoningFormat::None, ReasoningFormat::Think, ReasoningFormat::Mistral];
        known.into_iter().find(|format| format.name() == text).ok_or_else(|| "is not a format".to_owned())
    }
}
