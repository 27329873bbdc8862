"""Hooks of the documentation site (mkdocs.yml): pages that are not in docs/.

- `reference/MODULE.md`: the API reference of a module, a heading for each public name. mkdocstrings
  fills it from the docstrings. A public name without docstring ends the build.
- `repository/PATH`: files of the repository that a page links to. Pages link to them by their place
  in the repository, so that they can be read there too; the links are rewritten for the site.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
REFERENCE = "reference/"
REPOSITORY = "repository/"
OVERRIDDEN = {"forward", "extra_repr"}  # methods that torch documents


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API reference and the files that pages link to outside of docs/."""
    nav = [*_of_nav(config.nav)]
    loader = griffe.GriffeLoader(search_paths=[str(ROOT)], docstring_parser="google")
    for package in ("clnp_kernels", "clnp"):
        loader.load(package)
    loader.resolve_aliases(external=False)
    for uri in (uri for uri in nav if uri.startswith(REFERENCE)):
        module = loader.modules_collection[uri.removeprefix(REFERENCE).removesuffix(".md")]
        files.append(File.generated(config, uri, content=_reference(module)))
    waiting = [uri.removeprefix(REPOSITORY) for uri in nav if uri.startswith(REPOSITORY)]
    for file in files.documentation_pages():
        if not file.src_uri.startswith(REFERENCE):
            waiting += _links(f"docs/{file.src_uri}")
    known = set()
    while waiting:
        path = waiting.pop()
        uri = _site(path)
        if uri.startswith(REPOSITORY) and path not in known and (ROOT / path).is_file():
            known.add(path)
            place = InclusionLevel.UNDEFINED if uri in nav else InclusionLevel.NOT_IN_NAV
            source = str(ROOT / path)
            files.append(File.generated(config, uri, abs_src_path=source, inclusion=place))
            waiting += _links(path) if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between files of the repository as links between files of the site."""
    if page.file.src_uri.startswith(REFERENCE):
        return markdown
    uri = page.file.src_uri
    path = uri.removeprefix(REPOSITORY) if uri.startswith(REPOSITORY) else f"docs/{uri}"

    def rewritten(found: re.Match[str]) -> str:
        return os.path.relpath(_site(_target(path, found[1])), PurePosixPath(uri).parent)

    return LINK.sub(rewritten, markdown)


def _of_nav(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, (list, dict)):
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from _of_nav(item)


def _links(path: str) -> list[str]:
    """Return the paths in the repository that a page links to."""
    return [_target(path, link) for link in LINK.findall((ROOT / path).read_text())]


def _target(path: str, link: str) -> str:
    return os.path.normpath(PurePosixPath(path).parent / link)


def _site(path: str) -> str:
    """Return the place in the site of a path in the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else REPOSITORY + path


def _reference(module: griffe.Module) -> str:
    """Return the page of a module.

    Raises:
        PluginError: a public name, or a public method of a public class, has no docstring.
    """
    names = map(str, module.exports or [n for n, m in module.members.items() if not m.is_alias])
    public = {n: module[n] for n in names if not (n.startswith("_") or module[n].is_module)}
    missing = [path for member in public.values() for path in _without_docstring(member)]
    if missing:
        raise PluginError(f"public names without docstring: {', '.join(missing)}")
    parts = [f"# {module.path}", f"::: {module.path}\n    options:\n      members: []"]
    parts[1] += "\n      show_root_heading: false\n      show_root_toc_entry: false"
    parts += [f"::: {module.path}.{name}" for name in public]
    return "\n\n".join(parts) + "\n"


def _without_docstring(member: griffe.Object | griffe.Alias) -> Iterator[str]:
    """Return the paths of a class or function, and of its public methods, that have none."""
    target = member.final_target if member.is_alias else member
    if (target.is_class or target.is_function) and not target.docstring:
        yield member.path
    if target.is_class:
        bases = [base.members for base in target.mro()]
        for name, inner in target.members.items():
            documented = any(name in base and base[name].docstring for base in bases)
            if not (name.startswith("_") or name in OVERRIDDEN or inner.is_alias or documented):
                yield from _without_docstring(inner)
