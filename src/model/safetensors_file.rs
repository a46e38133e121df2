//! The safetensors files of a model: a single file, or shards with an index.
//! Format: <https://github.com/huggingface/safetensors#format>.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path};

use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::files::ModelFiles;
use super::json_file::JsonObject;
use super::{Dtype, ModelError, Tensor, TensorBytes};

/// The weights of a model that is not sharded.
pub(super) const SINGLE: &str = "model.safetensors";
/// Which tensor of a sharded model is in which file.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Weights, or their index, in the format that was before safetensors.
pub(super) const OTHER_WEIGHTS: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Suffix of tensors in old checkpoints that follow from config.json and are ignored.
const DERIVED_SUFFIX: &str = ".rotary_emb.inv_freq";

/// Most shards of a model.
const SHARDS_MAX: usize = 4096;

/// All tensors of a model by name, mapped but not read.
pub(super) struct TensorFiles {
    /// Path used in errors about the model as a whole: the single file, or the index.
    path: String,
    tensors: BTreeMap<String, StoredTensor>,
}

struct StoredTensor {
    path: String,
    file: TensorBytes,
    data_start: usize,
    info: TensorInfo,
}

impl TensorFiles {
    /// Maps the weight files and parses their headers. Like transformers, prefers the single
    /// file over shards if both exist.
    pub(super) fn open(files: &ModelFiles) -> Result<Self, ModelError> {
        if files.has(SINGLE) {
            let mut tensors = BTreeMap::new();
            open_file(files, SINGLE, |name, tensor| {
                tensors.insert(name, tensor);
            })?;
            return Ok(Self { path: files.path_of(SINGLE), tensors });
        }
        if files.has(INDEX) {
            return Self::open_shards(files);
        }
        let hint = if OTHER_WEIGHTS.into_iter().any(|name| files.has(name)) {
            "; convert its pytorch_model.bin to safetensors first"
        } else {
            ""
        };
        Err(ModelError::NoWeights { directory: files.place(), hint })
    }

    fn open_shards(files: &ModelFiles) -> Result<Self, ModelError> {
        let path = files.path_of(INDEX);
        let json = files.read_json(INDEX)?;
        let mut tensors = BTreeMap::new();
        for (shard, names) in tensors_of_shards(&path, &json)? {
            let mut stored = BTreeMap::new();
            open_file(files, shard, |name, tensor| {
                stored.insert(name, tensor);
            })?;
            for name in names {
                let tensor = stored.remove(name).ok_or_else(|| ModelError::Safetensors {
                    file: files.path_of(shard),
                    problem: format!("{INDEX} lists `{name}` in this file, but it is missing"),
                })?;
                tensors.insert(name.to_owned(), tensor);
            }
        }
        Ok(Self { path, tensors })
    }

    /// Whether a tensor of this name exists.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Tensor names with the paths of their files.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.path.as_str()))
    }

    /// Path of the file that holds `name`, or of the whole model if none does.
    pub(super) fn path_of(&self, name: &str) -> &str {
        self.tensors.get(name).map_or(&self.path, |tensor| &tensor.path)
    }

    /// Shape of the tensor `name`.
    pub(super) fn shape(&self, name: &str) -> Result<&[usize], ModelError> {
        self.stored(name, &[]).map(|stored| stored.info.shape.as_slice())
    }

    /// The numbers of the tensor `name`, which must be `len` 64-bit integers.
    pub(super) fn integers(&self, name: &str, len: usize) -> Result<Vec<i64>, ModelError> {
        let stored = self.in_shape(name, &[len])?;
        if stored.info.dtype != safetensors::Dtype::I64 {
            return Err(stored.bad_dtype(name, "I64"));
        }
        let bytes = &(*stored.file).as_ref()[stored.range()];
        Ok(bytes
            .chunks_exact(8)
            .map(|number| i64::from_le_bytes(number.try_into().expect("8 bytes")))
            .collect())
    }

    /// Refuses tensors other than those `taken`, except such that follow from config.json.
    pub(super) fn refuse_others(&self, taken: &BTreeSet<String>) -> Result<(), ModelError> {
        let stray = self.names().find(|(name, _)| !taken.contains(*name) && !name.ends_with(DERIVED_SUFFIX));
        match stray {
            None => Ok(()),
            Some((tensor, file)) => {
                Err(ModelError::UnexpectedTensor { file: file.to_owned(), tensor: tensor.to_owned() })
            }
        }
    }

    /// Returns the tensor `name`, which must have the shape `expected`.
    pub(super) fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        let stored = self.in_shape(name, expected)?;
        let dtype = dtype(stored.info.dtype).ok_or_else(|| stored.bad_dtype(name, "BF16, F16 and F32"))?;
        let range = stored.range();
        // The safetensors crate has validated offsets against shape and file length.
        debug_assert_eq!(range.len(), expected.iter().product::<usize>() * dtype.bytes());
        Ok(Tensor { dtype, shape: stored.info.shape.clone(), file: stored.file.clone(), range })
    }

    /// The tensor `name` in whatever shape; `expected` is for the error.
    fn stored(&self, name: &str, expected: &[usize]) -> Result<&StoredTensor, ModelError> {
        self.tensors.get(name).ok_or_else(|| ModelError::MissingTensor {
            file: self.path.clone(),
            tensor: name.to_owned(),
            expected: expected.to_vec(),
        })
    }

    fn in_shape(&self, name: &str, expected: &[usize]) -> Result<&StoredTensor, ModelError> {
        let stored = self.stored(name, expected)?;
        if stored.info.shape == expected {
            return Ok(stored);
        }
        Err(ModelError::Shape {
            file: stored.path.clone(),
            tensor: name.to_owned(),
            expected: expected.to_vec(),
            found: stored.info.shape.clone(),
        })
    }
}

impl StoredTensor {
    /// Where its bytes are in the file.
    fn range(&self) -> Range<usize> {
        let (start, end) = self.info.data_offsets;
        self.data_start + start..self.data_start + end
    }

    fn bad_dtype(&self, name: &str, supported: &'static str) -> ModelError {
        ModelError::Dtype {
            file: self.path.clone(),
            tensor: name.to_owned(),
            found: format!("{:?}", self.info.dtype),
            supported,
        }
    }
}

/// The weight files that the index names.
pub(super) fn shards(files: &ModelFiles) -> Result<Vec<String>, ModelError> {
    let json = files.read_json(INDEX)?;
    let path = files.path_of(INDEX);
    Ok(tensors_of_shards(&path, &json)?.into_keys().map(ToOwned::to_owned).collect())
}

/// The names of the tensors in each weight file, by the index in the file `path`.
fn tensors_of_shards<'a>(
    path: &'a str,
    index: &'a Value,
) -> Result<BTreeMap<&'a str, Vec<&'a str>>, ModelError> {
    let root = JsonObject::root(path, index)?;
    let map = root.object("weight_map")?.ok_or_else(|| root.missing("weight_map"))?;
    let mut names_of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, value) in map.entries() {
        let shard = value.as_str().ok_or_else(|| map.bad(tensor, "expected a string"))?;
        if !is_file_name(shard) {
            return Err(map.bad(tensor, "expected the name of a file in the same directory"));
        }
        names_of.entry(shard).or_default().push(tensor);
    }
    if names_of.len() > SHARDS_MAX {
        return Err(root.bad("weight_map", format!("names more than {SHARDS_MAX} files")));
    }
    Ok(names_of)
}

fn open_file(
    files: &ModelFiles,
    name: &str,
    mut each: impl FnMut(String, StoredTensor),
) -> Result<(), ModelError> {
    let path = files.path_of(name);
    let file = files.map(name)?;
    let (header_bytes, metadata) = read_header(&path, (*file).as_ref())?;
    let data_start = size_of::<u64>() + header_bytes;
    for (name, info) in metadata.tensors() {
        let tensor = StoredTensor { path: path.clone(), file: file.clone(), data_start, info: info.clone() };
        each(name, tensor);
    }
    Ok(())
}

fn read_header(path: &str, bytes: &[u8]) -> Result<(usize, Metadata), ModelError> {
    SafeTensors::read_metadata(bytes).map_err(|error| ModelError::Safetensors {
        file: path.to_owned(),
        problem: format!("{error} (the file has {} bytes)", bytes.len()),
    })
}

fn dtype(stored: safetensors::Dtype) -> Option<Dtype> {
    match stored {
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::F32 => Some(Dtype::F32),
        _ => None,
    }
}

fn is_file_name(text: &str) -> bool {
    let mut parts = Path::new(text).components();
    matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()
}
