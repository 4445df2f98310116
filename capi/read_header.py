#!/usr/bin/env python3
"""Reads firsttouch.h, which is the one source of its documentation.

  read_header.py HEADER version          prints the version
  read_header.py HEADER man FOLDER       writes man pages (sections 3 and 7)
  read_header.py HEADER markdown         prints the reference as Markdown
  read_header.py HEADER abi LIBRARY      prints what callers are compiled against:
                                         places of fields, values, functions, and
                                         what the shared library exports
  read_header.py HEADER abi LIBRARY GOLDEN
                                         the same, compared with a file

The header is blocks with an empty line between them: a comment, and declarations
that it is about. A line "// --- Title: name ---" begins a section, which becomes
the man page of that name. In a comment, indented lines are code.
"""

import difflib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap


class Block:
    """A comment and the declarations behind it."""

    def __init__(self, comment, code):
        self.comment = comment
        self.code = code

    def functions(self):
        """(name, declaration in one line) of each function."""
        for text in re.findall(r"FT_API\s+(.*?;)", self.code, re.S):
            text = re.sub(r"\s+", " ", text.replace(" FT_NOEXCEPT", ""))
            yield re.search(r"\b(ft_\w+)\(", text).group(1), text


class Section:
    def __init__(self, title, page):
        self.title = title
        self.page = page
        self.blocks = []


def without_marks(code):
    """Declarations as callers see them, without what is for compilers."""
    out, moved = [], False
    for line in code.replace(" FT_NOEXCEPT", "").split("\n"):
        if line.startswith("FT_API "):
            line, moved = line[len("FT_API "):], True
        elif moved and line.startswith(" " * (len("FT_API ") + 4)):
            line = line[len("FT_API "):]
        moved = moved and not line.endswith(";")
        out.append(line)
    return "\n".join(out)


def without_comments(code):
    return re.sub(r"//[^\n]*", "", code)


class Header:
    def __init__(self, text):
        self.version = re.search(r'#define FT_VERSION_STRING "([^"]+)"', text).group(1)
        head, body = text.split("#ifndef FIRSTTOUCH_CAPI_FIRSTTOUCH_H_\n", 1)
        self.head = self.uncomment(head.strip().split("\n"))
        self.sections = []
        for block in re.split(r"\n(?:[ \t]*\n)+", body):
            lines = block.strip("\n").split("\n")
            title = re.fullmatch(r"// --- (.+): (\w+) -+", lines[0])
            if title:
                self.sections.append(Section(title[1], title[2]))
                continue
            comment = []
            while lines and lines[0].startswith("//"):
                comment.append(lines.pop(0))
            code = "\n".join(lines)
            if not self.sections or re.match(r"#(endif|ifdef)|NOLINT", code) or "NOLINT" in "".join(comment):
                continue
            self.sections[-1].blocks.append(Block(self.uncomment(comment), code))
        names = [name for section in self.sections for block in section.blocks
                 for name, _ in block.functions()]
        if len(names) < 50 or len(set(names)) != len(names):
            sys.exit("read_header.py: found the functions %s: the patterns are out of date" % names)

    @staticmethod
    def uncomment(lines):
        return "\n".join(re.sub(r"^// ?", "", line) for line in lines)


def paragraphs(text):
    """Yields (is code, text) of a comment."""
    for paragraph in re.split(r"\n\n+", text.strip("\n")):
        lines = paragraph.split("\n")
        at = 0
        while at < len(lines):
            end = at
            code = lines[at].startswith("  ")
            while end < len(lines) and lines[end].startswith("  ") == code:
                end += 1
            yield code, textwrap.dedent("\n".join(lines[at:end]))
            at = end


# --- Man pages ---------------------------------------------------------------


def roff(text):
    """Text in which nothing is an instruction to roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.split("\n"))


def roff_comment(text):
    out = []
    for code, paragraph in paragraphs(text):
        out += [".PP", ".nf", ".RS 4", roff(paragraph), ".RE", ".fi"] if code else [".PP", roff(paragraph)]
    return out


def roff_code(code):
    return [".PP", ".nf", ".RS 4", roff(code), ".RE", ".fi"]


def page(name, number, version, what, body, also):
    also = ", ".join(".BR %s (%s)" % pair for pair in also).replace(", .BR", " ,\n.BR")
    return "\n".join(
        ['.TH %s %s "" "firsttouch %s"' % (name, number, version), ".SH NAME", "%s \\- %s" % (name, roff(what))]
        + body + [".SH SEE ALSO", also, ""])


def man(header, folder):
    sections = header.sections
    pages = [(section.page, 3) for section in sections]
    write = {}
    write["man7/firsttouch.7"] = page(
        "firsttouch", 7, header.version, "memories for short-lived sandboxes",
        [".SH SYNOPSIS", ".B #include <firsttouch.h>", ".PP", "Link with \\fI\\-lfirsttouch\\fP.",
         ".SH DESCRIPTION"] + roff_comment(header.head), pages)
    for section in sections:
        functions = [pair for block in section.blocks for pair in block.functions()]
        body = [".SH SYNOPSIS", ".nf", ".B #include <firsttouch.h>", ".PP"]
        for _, declaration in functions:
            body.append(roff(textwrap.fill(declaration, 74, subsequent_indent="    ")))
        body += [".fi", ".SH DESCRIPTION"]
        for block in section.blocks:
            if block.code:
                body += roff_code(without_marks(block.code))
            body += roff_comment(block.comment) if block.comment else []
        write["man3/%s.3" % section.page] = page(
            section.page, 3, header.version, section.title.lower(), body,
            [("firsttouch", 7)] + [pair for pair in pages if pair[0] != section.page])
        for name, _ in functions:
            write.setdefault("man3/%s.3" % name, ".so man3/%s.3\n" % section.page)
    for name, text in write.items():
        path = pathlib.Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- Markdown ----------------------------------------------------------------


def markdown(header):
    out = ["# firsttouch in C, version %s" % header.version, "",
           "Made from firsttouch.h, whose comments these are.", ""]

    def comment(text):
        for code, paragraph in paragraphs(text):
            out.extend(["```c", paragraph, "```", ""] if code else [paragraph, ""])

    comment(header.head)
    for section in header.sections:
        out.extend(["## %s" % section.title, ""])
        for block in section.blocks:
            names = [name for name, _ in block.functions()]
            if names:
                out.extend(["### %s" % ", ".join(names), ""])
            if block.code:
                out.extend(["```c", without_marks(block.code), "```", ""])
            if block.comment:
                comment(block.comment)
    return "\n".join(out)


# --- What callers are compiled against ---------------------------------------


def fields(body):
    for field in without_comments(body).split(";"):
        field = " ".join(field.split())
        if not field:
            continue
        pointer = re.search(r"\(\* ?(\w+)\)\(", field)
        yield pointer[1] if pointer else re.search(r"(\w+)(?:\[\w+\])?$", field)[1]


def abi_program(header, path):
    """A program in C that prints sizes, offsets and values."""
    out = ['#include "%s"' % path, "#include <stdio.h>", "int main(void) {"]
    for section in header.sections:
        for block in section.blocks:
            for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\n\} \1;", block.code, re.S):
                out.append('printf("struct %s: %%zu bytes\\n", sizeof(%s));' % (name, name))
                for field in fields(body):
                    out.append(
                        'printf("  %%zu %s, %%zu bytes\\n", offsetof(%s, %s), sizeof(((%s*)0)->%s));'
                        % (field, name, field, name, field))
            for body in re.findall(r"enum \{(.*?)\}", block.code, re.S):
                for constant in re.findall(r"\b(FT_\w+)\b", without_comments(body)):
                    out.append('printf("%s = %%lld\\n", (long long)%s);' % (constant, constant))
            for macro, value in re.findall(r"#define (FT_\w+) (\w+)$", block.code, re.M):
                if not macro.startswith("FT_VERSION"):
                    out.append('printf("%s = %%lld\\n", (long long)%s);' % (macro, macro))
            for name in re.findall(r"typedef [^;{]*?\b(ft_\w+);", without_comments(block.code)):
                out.append('printf("%s: %%zu bytes\\n", sizeof(%s));' % (name, name))
    return "\n".join(out + ["return 0;", "}", ""])


def abi(header, path, library):
    with tempfile.TemporaryDirectory() as scratch:
        source = os.path.join(scratch, "abi.c")
        pathlib.Path(source).write_text(abi_program(header, os.path.abspath(path)))
        program = os.path.join(scratch, "abi")
        subprocess.run(["gcc", "-std=c99", "-o", program, source], check=True)
        out = subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout
    for section in header.sections:
        for block in section.blocks:
            for callback in re.findall(r"typedef [^;{]*\(\*\w+\)\([^;]*;", without_comments(block.code)):
                out += " ".join(callback.split()) + "\n"
            for _, declaration in block.functions():
                out += declaration + "\n"
    exported = subprocess.run(["nm", "--dynamic", "--defined-only", library], check=True,
                              stdout=subprocess.PIPE, text=True, env=dict(os.environ, LC_ALL="C")).stdout
    out += "".join("exported: %s\n" % line.split(maxsplit=2)[2] for line in exported.splitlines())
    soname = subprocess.run(["readelf", "--dynamic", library], check=True, stdout=subprocess.PIPE,
                            text=True, env=dict(os.environ, LC_ALL="C")).stdout
    return out + "soname: %s\n" % re.search(r"\(SONAME\).*\[(.*)\]", soname)[1]


def main():
    path, command = sys.argv[1:3]
    header = Header(pathlib.Path(path).read_text())
    if command == "version":
        print(header.version)
    elif command == "man":
        man(header, sys.argv[3])
    elif command == "markdown":
        print(markdown(header))
    elif command == "abi":
        found = abi(header, path, sys.argv[3])
        if len(sys.argv) == 4:
            sys.stdout.write(found)
            return 0
        golden = pathlib.Path(sys.argv[4]).read_text()
        if found != golden:
            sys.stdout.writelines(difflib.unified_diff(
                golden.splitlines(True), found.splitlines(True), "programs are compiled against", "the header has"))
            print("\nWhat programs are compiled against must stay; lines may be added. The new file is what"
                  "\n  python3 capi/read_header.py capi/firsttouch.h abi bazel-bin/capi/libfirsttouch.so"
                  "\nprints.")
            return 1
    else:
        sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
