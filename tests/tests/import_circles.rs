//! No file of a program imports itself by way of others: what is below knows nothing of what is above.
//!
//! Counted are `use` declarations and paths from `crate`, `self` or `super`, tests excluded, up to the file that
//! defines what is named: a `pub use` is followed, and makes its file depend on no other. Nor does a call of
//! `child::function()`: a parent chooses among its children, which may use its types.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, File, ItemFn, ItemImpl, ItemMod, ItemUse, UseTree, Visibility};

/// From the root of a crate; the root itself is empty.
type ModulePath = Vec<String>;

#[test]
fn no_file_imports_itself_by_way_of_others() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = String::new();
    for program in ["proto", "worker", "coordinator", "deploy/launcher"] {
        let mut crate_files = CrateFiles::default();
        crate_files.read(ModulePath::new(), &repository.join(program).join("src/lib.rs"));
        for circle in crate_files.import_graph().circles() {
            write!(found, "\n{program}: files import each other in a circle\n{circle}").unwrap();
        }
    }
    assert!(found.is_empty(), "{found}");
}

#[test]
fn a_circle_is_named() {
    let circles = |files: &[(&str, &str)]| {
        let mut crate_files = CrateFiles::default();
        for &(name, text) in files {
            let module = name.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
            crate_files.add(module, name.into(), syn::parse_file(text).unwrap());
        }
        crate_files.import_graph().circles()
    };
    let root = ("", "pub mod a; pub mod b; pub use b::low::Low;");
    let low = ("b::low", "pub struct Low;");
    let b = "mod low; pub use low::Low; pub struct B;";
    assert_eq!(circles(&[root, ("a", "use crate::b::{B, Low};"), ("b", b), low]), [""; 0]);
    assert_eq!(
        circles(&[root, ("a", "use crate::b::B;"), ("b", &format!("{b} fn f() -> crate::a::A {{}}")), low]),
        ["    a -> b [B]\n    b -> a [A]\n"]
    );
    let test = "#[cfg(test)] mod tests { use crate::a::A; }";
    assert_eq!(circles(&[root, ("a", "use crate::b::B;"), ("b", &format!("{b} {test}")), low]), [""; 0]);
    assert_eq!(
        circles(&[root, ("a", "use crate::Low;"), ("b", b), ("b::low", "pub struct Low(super::super::a::A);")]),
        ["    a -> b::low [Low]\n    b::low -> a [A]\n"]
    );
}

/// The paths that the files of a crate name.
#[derive(Default)]
struct CrateFiles {
    files: BTreeMap<ModulePath, SourceFile>,
}

struct SourceFile {
    path: PathBuf,
    /// As written, but from the root of the crate.
    named: BTreeSet<ModulePath>,
    /// By the path that a `pub use` adds, the one that it stands for.
    reexports: BTreeMap<ModulePath, ModulePath>,
}

impl CrateFiles {
    /// Adds the file of `module` and those of its modules.
    fn read(&mut self, module: ModulePath, path: &Path) {
        let file = syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap();
        let own = path.with_extension("");
        let folder = if module.is_empty() || own.ends_with("mod") { path.parent().unwrap() } else { &own };
        for item in &file.items {
            let syn::Item::Mod(ItemMod { attrs, ident, content: None, .. }) = item else { continue };
            if for_tests(attrs) {
                continue;
            }
            let child = [module.clone(), vec![ident.to_string()]].concat();
            let places = [folder.join(format!("{ident}.rs")), folder.join(format!("{ident}/mod.rs"))];
            let place = places.iter().find(|place| place.is_file());
            self.read(child, place.unwrap_or_else(|| panic!("no file of `mod {ident}` in {}", path.display())));
        }
        self.add(module, path.to_owned(), file);
    }

    fn add(&mut self, module: ModulePath, path: PathBuf, file: File) {
        let mut names = PathCollector { module: module.clone(), ..PathCollector::default() };
        names.visit_file(&file);
        let reexports =
            names.reexported.into_iter().map(|(name, path)| ([module.clone(), vec![name]].concat(), path));
        let source = SourceFile { path, named: names.named.into_iter().collect(), reexports: reexports.collect() };
        self.files.insert(module, source);
    }

    fn import_graph(&self) -> ImportGraph<'_> {
        let mut graph = ImportGraph::default();
        for (module, file) in &self.files {
            let imports = graph.0.entry(file.path.as_path()).or_default();
            for path in &file.named {
                let defined = self.definition(path.clone());
                let target = self.file_of(&defined);
                if target != module {
                    let name = defined.last().cloned().unwrap_or_default();
                    imports.entry(self.files[target].path.as_path()).or_default().insert(name);
                }
            }
        }
        graph
    }

    /// The path without the re-exports on its way.
    fn definition(&self, mut path: ModulePath) -> ModulePath {
        // A chain of more would be a circle of re-exports, which rustc refuses.
        for _ in 0..10 {
            let reexport = (1..=path.len()).find_map(|end| {
                let stands_for = self.files.get(&path[..end - 1])?.reexports.get(&path[..end])?;
                Some([stands_for, &path[end..]].concat())
            });
            match reexport {
                Some(next) => path = next,
                None => break,
            }
        }
        path
    }

    /// The module with a file of its own that `path` leads into.
    fn file_of<'a>(&'a self, path: &'a [String]) -> &'a ModulePath {
        let longest = (0..=path.len()).rev().find_map(|end| self.files.get_key_value(&path[..end]));
        longest.expect("the root has a file").0
    }
}

/// By file, the files that it imports and what of them.
#[derive(Default)]
struct ImportGraph<'a>(BTreeMap<&'a Path, BTreeMap<&'a Path, BTreeSet<String>>>);

impl ImportGraph<'_> {
    /// Circles, each a line per import; no file is in two of them.
    fn circles(&self) -> Vec<String> {
        let mut told = BTreeSet::new();
        let mut circles = Vec::new();
        for &file in self.0.keys() {
            let Some(circle) = self.shortest_way_back(file) else { continue };
            if circle.iter().any(|file| told.contains(file)) {
                continue;
            }
            let mut text = String::new();
            for (from, to) in circle.iter().zip(circle.iter().cycle().skip(1)) {
                let names: Vec<&str> = self.0[from][to].iter().map(String::as_str).collect();
                writeln!(text, "    {} -> {} [{}]", from.display(), to.display(), names.join(", ")).unwrap();
            }
            told.extend(circle);
            circles.push(text);
        }
        circles
    }

    /// From `file` over others to itself.
    fn shortest_way_back<'s>(&'s self, file: &'s Path) -> Option<Vec<&'s Path>> {
        let mut ways = VecDeque::from([vec![file]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            for &next in self.0.get(way.last()?)?.keys() {
                if next == file {
                    return Some(way);
                }
                if seen.insert(next) {
                    ways.push_back([way.as_slice(), &[next]].concat());
                }
            }
        }
        None
    }
}

/// Collects what a file names, from the root of its crate.
#[derive(Default)]
struct PathCollector {
    /// Where the walk is; may be inside a module without a file.
    module: ModulePath,
    /// Modules that the file declares; their names alone begin a path.
    children: BTreeSet<String>,
    named: Vec<ModulePath>,
    /// Name and path of each `pub use`.
    reexported: Vec<(String, ModulePath)>,
}

impl PathCollector {
    /// `path` from the root; `None` where it begins with a name.
    fn absolute(&self, path: &[String]) -> Option<ModulePath> {
        let mut absolute = match path.first()?.as_str() {
            "crate" => ModulePath::new(),
            "self" | "super" => self.module.clone(),
            _ => return None,
        };
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "super" => drop(absolute.pop()),
                _ => absolute.push(part.clone()),
            }
        }
        Some(absolute)
    }

    /// What a `use` of `path` means, from the root; `None` for other crates.
    fn imported(&self, path: &[String]) -> Option<ModulePath> {
        let of_child = path.first().is_some_and(|name| self.children.contains(name));
        if of_child { Some([self.module.as_slice(), path].concat()) } else { self.absolute(path) }
    }

    fn use_tree(&mut self, tree: &UseTree, prefix: &[String], public: bool) {
        let with = |name: String| [prefix, &[name]].concat();
        let (path, name) = match tree {
            UseTree::Path(path) => return self.use_tree(&path.tree, &with(path.ident.to_string()), public),
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.use_tree(tree, prefix, public));
            }
            UseTree::Name(name) if name.ident == "self" => (prefix.to_vec(), prefix.last().cloned()),
            UseTree::Name(name) => (with(name.ident.to_string()), Some(name.ident.to_string())),
            UseTree::Rename(rename) => (with(rename.ident.to_string()), Some(rename.rename.to_string())),
            UseTree::Glob(_) => (prefix.to_vec(), None),
        };
        match (public, name) {
            (true, Some(name)) => self.reexported.extend(self.imported(&path).map(|path| (name, path))),
            _ => self.named.extend(self.imported(&path)),
        }
    }
}

impl<'ast> Visit<'ast> for PathCollector {
    fn visit_file(&mut self, file: &'ast File) {
        let modules = file.items.iter().filter_map(|item| match item {
            syn::Item::Mod(module) => Some(module.ident.to_string()),
            _ => None,
        });
        self.children.extend(modules);
        visit::visit_file(self, file);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !for_tests(&item.attrs) {
            self.use_tree(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !for_tests(&item.attrs) && item.content.is_some() {
            self.module.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        if !for_tests(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        if !for_tests(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.named.extend(self.absolute(&parts));
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {
        // `pub(super)` names no import.
    }
}

fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}
