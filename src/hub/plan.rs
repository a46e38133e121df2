//! Which files of a repository are fetched: those that the loader reads.

use super::error::HubError;
use crate::model::{HubName, REQUIRED_FILES, WEIGHTS_FILE, WEIGHTS_INDEX};

/// Files beside the weights, where a repository has them.
const OPTIONAL_FILES: [&str; 4] =
    ["generation_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"];
/// Directory of further chat templates.
const TEMPLATES: &str = "additional_chat_templates/";

/// What to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Files that describe the model; the weights' index is among them.
    pub described: Vec<String>,
    /// Whether the weights are the files that the index names, or the single file.
    pub sharded: bool,
}

/// Plans what to fetch of a repository with these files.
pub(super) fn plan(name: &HubName, files: &[String]) -> Result<Plan, HubError> {
    let has = |wanted: &str| files.iter().any(|file| file == wanted);
    let sharded = !has(WEIGHTS_FILE);
    if sharded && !has(WEIGHTS_INDEX) {
        return Err(no_weights(name, files));
    }
    if let Some(missing) = REQUIRED_FILES.into_iter().find(|required| !has(required)) {
        return Err(HubError::Unfit { name: name.to_string(), problem: format!("has no {missing}") });
    }
    let index = sharded.then_some(WEIGHTS_INDEX);
    let described = files.iter().filter(|file| describes(file) || index == Some(file.as_str()));
    Ok(Plan { described: described.cloned().collect(), sharded })
}

fn describes(file: &str) -> bool {
    let tokenizer = file.starts_with("tokenizer") && file.ends_with(".json") && !file.contains('/');
    let template = file.strip_prefix(TEMPLATES).and_then(|name| name.strip_suffix(".jinja"));
    REQUIRED_FILES.contains(&file)
        || OPTIONAL_FILES.contains(&file)
        || tokenizer
        || template.is_some_and(|name| !name.is_empty() && !name.starts_with('.') && !name.contains('/'))
}

/// Whether a model is of no use without `file`.
pub(super) fn is_required(file: &str) -> bool {
    REQUIRED_FILES.contains(&file) || file == WEIGHTS_INDEX || file.ends_with(".safetensors")
}

fn no_weights(name: &HubName, files: &[String]) -> HubError {
    if let Some(file) = files.iter().find(|file| file.to_ascii_lowercase().ends_with(".gguf")) {
        return HubError::Gguf { name: name.to_string(), file: file.clone() };
    }
    let other = if files.iter().any(|file| file.starts_with("pytorch_model")) {
        "; its weights are PyTorch's: convert them to safetensors"
    } else {
        ""
    };
    let problem = format!("has neither {WEIGHTS_FILE} nor {WEIGHTS_INDEX}{other}");
    HubError::Unfit { name: name.to_string(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(files: &[&str]) -> Result<Plan, String> {
        let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
        plan(&"org/name".parse().expect("a name"), &files).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_loader_reads_is_fetched_and_nothing_else() {
        let wanted = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
        ];
        let others = [
            ".gitattributes",
            "README.md",
            "pytorch_model.bin",
            "model-Q4.gguf",
            "onnx/model.onnx",
            "onnx/tokenizer.json",
            "consolidated.safetensors",
            "tokenizer.model",
            "additional_chat_templates/../../../x.jinja",
            "additional_chat_templates/.jinja",
            "original/model.safetensors",
        ];
        let mut files =
            [&wanted[..], &others, &["model.safetensors", "model.safetensors.index.json"]].concat();
        let plan = planned(&files).expect("a model");
        assert_eq!((plan.described, plan.sharded), (wanted.map(ToOwned::to_owned).to_vec(), false));
        files.retain(|file| *file != "model.safetensors");
        let plan = planned(&files).expect("a model");
        assert!(plan.sharded && plan.described.contains(&WEIGHTS_INDEX.to_owned()));
    }

    #[test]
    fn a_repository_that_cannot_be_served_is_refused_before_anything_is_fetched() {
        let gguf = planned(&["config.json", "tokenizer.json", "x-Q4_K_M.gguf"]).expect_err("no safetensors");
        assert!(gguf.contains("x-Q4_K_M.gguf") && gguf.contains("convert"), "{gguf}");
        let torch =
            planned(&["config.json", "tokenizer.json", "pytorch_model.bin"]).expect_err("no safetensors");
        assert!(torch.contains("PyTorch"), "{torch}");
        let error = planned(&["config.json", "model.safetensors"]).expect_err("no tokenizer");
        assert!(error.contains("`org/name` has no tokenizer.json"), "{error}");
        let error = planned(&[]).expect_err("nothing");
        assert!(error.contains("has neither model.safetensors nor"), "{error}");
    }

    #[test]
    fn templates_and_defaults_may_be_missing_but_weights_may_not() {
        assert!(
            ["config.json", "tokenizer.json", "model-1.safetensors", WEIGHTS_INDEX]
                .into_iter()
                .all(is_required)
        );
        assert!(!["generation_config.json", "chat_template.jinja"].into_iter().any(is_required));
    }
}
