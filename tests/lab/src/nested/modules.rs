//! Kernel modules and the order in which they must be loaded.
//!
//! Each module carries the names of those it needs in its `.modinfo` section (`depends=a,b`; Linux,
//! `scripts/mod/modpost.c`). Reading them there rather than from `modules.dep` serves an installed kernel and one that
//! was only unpacked from its package alike: `modules.dep` exists only after the package's installation ran `depmod`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How a module file may be packed: its name's ending and the program that unpacks it to its standard output.
const PACKINGS: [(&str, Option<&str>); 3] = [(".ko", None), (".ko.xz", Some("xz")), (".ko.zst", Some("zstd"))];
/// Deepest folder nesting under `/lib/modules/VERSION` that is searched; Debian's is 8.
const MAX_DEPTH: u32 = 16;

/// What can go wrong with modules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A module folder or file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// The failure itself.
        source: io::Error,
    },
    /// The kernel has no such module.
    #[error("the kernel in {tree} has no module {name:?}, neither built in nor as a file")]
    Missing {
        /// Folder of the kernel's modules.
        tree: PathBuf,
        /// Name of the module.
        name: String,
    },
    /// A packed module could not be unpacked.
    #[error("cannot unpack {path} with `{program} -dc`: {reason}; is {program} installed?")]
    Unpack {
        /// The module file.
        path: PathBuf,
        /// The program that was tried.
        program: &'static str,
        /// What it said.
        reason: String,
    },
}

/// A module, ready for `insmod`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The name without folder and ending, `-` written as `_`.
    pub name: String,
    /// The ELF object.
    pub object: Vec<u8>,
}

/// Returns the modules `wanted` from the folder `tree` (`…/lib/modules/VERSION`) and all those they need, each one
/// after those it needs. What is built into the kernel is left out.
///
/// # Errors
/// Fails when a module is missing or cannot be read or unpacked.
pub fn in_load_order(tree: &Path, wanted: &[&str]) -> Result<Vec<Module>, Error> {
    let mut files = BTreeMap::new();
    collect(tree, MAX_DEPTH, &mut files)?;
    let builtin = builtin(tree)?;
    let mut order = Order {
        tree,
        files,
        done: builtin,
        modules: Vec::new(),
    };
    for name in wanted {
        order.add(&canonical(name))?;
    }
    Ok(order.modules)
}

struct Order<'a> {
    tree: &'a Path,
    files: BTreeMap<String, PathBuf>,
    done: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<(), Error> {
        // Marked before its dependencies are visited, so a circle (which modpost refuses to make) would end too.
        if !self.done.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| Error::Missing {
            tree: self.tree.to_owned(),
            name: name.to_owned(),
        })?;
        let object = read(path)?;
        for needed in dependencies(&object) {
            self.add(&needed)?;
        }
        self.modules.push(Module {
            name: name.to_owned(),
            object,
        });
        Ok(())
    }
}

/// Module names are compared as the kernel does: `-` and `_` are the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn module_name(file_name: &str) -> Option<String> {
    PACKINGS
        .iter()
        .find_map(|(ending, _)| file_name.strip_suffix(ending))
        .map(canonical)
}

fn collect(dir: &Path, depth: u32, files: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    let failed = |source| Error::Read {
        path: dir.to_owned(),
        source,
    };
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // An installed kernel's folder has links to its headers, `build` and `source`: they are not followed.
        if entry.file_type().map_err(failed)?.is_dir() {
            if depth > 0 {
                collect(&entry.path(), depth - 1, files)?;
            }
        } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

fn builtin(tree: &Path) -> Result<BTreeSet<String>, Error> {
    let path = tree.join("modules.builtin");
    let list = fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?;
    Ok(list
        .lines()
        .filter_map(|line| module_name(line.rsplit('/').next()?))
        .collect())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let name = path.to_string_lossy();
    let packing = PACKINGS.iter().find(|(ending, _)| name.ends_with(ending));
    let Some((_, Some(program))) = packing else {
        return fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        });
    };
    let failed = |reason: String| Error::Unpack {
        path: path.to_owned(),
        program,
        reason,
    };
    let ran = Command::new(program)
        .arg("-dc")
        .arg(path)
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if ran.status.success() {
        Ok(ran.stdout)
    } else {
        Err(failed(String::from_utf8_lossy(&ran.stderr).into_owned()))
    }
}

/// The names in the `depends=` entry of a module's `.modinfo`: NUL-terminated `key=value` strings.
fn dependencies(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = object.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = object[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.builtin"), "kernel/drivers/char/built-in.ko\n").unwrap();
        fs::create_dir_all(dir.path().join("kernel/net")).unwrap();
        for (file, depends) in modules {
            let object = format!("\x7fELF\0license=GPL\0depends={depends}\0retpoline=Y\0");
            fs::write(dir.path().join("kernel/net").join(file), object).unwrap();
        }
        dir
    }

    fn order(tree: &Path, wanted: &[&str]) -> Result<Vec<String>, Error> {
        Ok(in_load_order(tree, wanted)?
            .into_iter()
            .map(|module| module.name)
            .collect())
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let dir = tree(&[
            ("a.ko", "b-x,c"),
            ("b-x.ko", "c"),
            ("c.ko", ""),
            ("d.ko", "c,b_x"),
            ("unasked.ko", ""),
        ]);
        assert_eq!(order(dir.path(), &["a", "d"]).unwrap(), ["c", "b_x", "a", "d"]);
        assert_eq!(order(dir.path(), &["b_x", "b-x"]).unwrap(), ["c", "b_x"]);
    }

    #[test]
    fn what_is_built_in_is_left_out() {
        let dir = tree(&[("a.ko", "built_in")]);
        assert_eq!(order(dir.path(), &["a", "built-in"]).unwrap(), ["a"]);
    }

    #[test]
    fn a_missing_module_is_named() {
        let dir = tree(&[("a.ko", "gone")]);
        let error = order(dir.path(), &["a"]).unwrap_err().to_string();
        assert!(error.contains("no module \"gone\""), "{error}");
        assert!(
            order(&dir.path().join("nowhere"), &[])
                .unwrap_err()
                .to_string()
                .contains("nowhere")
        );
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let dir = tree(&[("a.ko", "b"), ("b.ko", "")]);
        let packed = dir.path().join("kernel/net/b.ko");
        let plain = fs::read(&packed).unwrap();
        assert!(Command::new("xz").arg(&packed).status().unwrap().success());
        let modules = in_load_order(dir.path(), &["a"]).unwrap();
        assert_eq!(
            modules[0],
            Module {
                name: "b".to_owned(),
                object: plain
            }
        );
    }

    #[test]
    fn damage_in_a_packed_module_is_named() {
        let dir = tree(&[("a.ko.xz", "")]);
        let error = order(dir.path(), &["a"]).unwrap_err().to_string();
        assert!(error.contains("a.ko.xz") && error.contains("xz -dc"), "{error}");
    }
}
