"""Translates scripts of WebAssembly's test suite into C and C++.

  translate.py --describe=PROGRAM --spectest=HEADER --code=FOLDER
      --programs=FOLDER SCRIPT...

For each .wast: wast2json takes it apart, wasm2c and describe_module translate
its modules as the rule wasm2c_guest does, and its commands become C++ that has
them as data (spec_script.h), beside a function for each export that is called.
Generated headers stand in the text of what would include them: the fewer files,
the less a build of many hundred modules costs.

Runs Debian's wabt 1.0.32, and needs nothing that Python does not bring.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# What a trap's text in a script is for wasm2c.
TRAPS = {
    'call stack exhausted': 'EXHAUSTION',
    'indirect call type mismatch': 'CALL_INDIRECT',
    'integer divide by zero': 'DIV_BY_ZERO',
    'integer overflow': 'INT_OVERFLOW',
    'invalid conversion to integer': 'INVALID_CONVERSION',
    'out of bounds memory access': 'OOB',
    'out of bounds table access': 'OOB',
    'undefined element': 'CALL_INDIRECT',
    'uninitialized element': 'CALL_INDIRECT',
    'unreachable': 'UNREACHABLE',
}

# Types of values: in C, and as a letter of spec_script.h.
TYPES = {
    'i32': ('u32', 'i'),
    'i64': ('u64', 'l'),
    'f32': ('f32', 'f'),
    'f64': ('f64', 'd'),
    'funcref': ('wasm_rt_funcref_t', 'r'),
    'externref': ('wasm_rt_externref_t', 'x'),
}

# Commands that need no run: the reader of the text or of the binary refuses
# their modules, and that reader is wabt.
IGNORED = ('assert_malformed', 'assert_invalid')


def mangle(name):
  """How wasm2c 1.0.32 spells a name."""
  return 'Z_' + ''.join(
      chr(c) if (chr(c).isalnum() and c < 128 and c != ord('Z')) or c == ord('_')
      else 'Z%02X' % c for c in name.encode('utf-8'))


def for_old_wabt(text):
  """The script as wabt 1.0.32 can read it: tables have to be named."""
  return re.sub(r'\btable\.(get|set|fill|grow|size)(?=\s*[()])', r'table.\1 0',
                text)


def declarations(header):
  """Each function that a header declares, with its type."""
  found = {}
  for result, name, arguments in re.findall(
      r'^(?:extern )?([\w ]+?\*?) (Z_\w+)\(([^)]*)\);$', header, re.M):
    # Exports name their instance, imports do not.
    found[name] = (result, re.sub(r'\bstruct | instance$', '', arguments))
  return found


# How many scripts become one C++ file.
SCRIPTS_A_FILE = 6


class Refused(Exception):
  """A tool refuses a module, or a command fails."""


class Module:
  """A module of a script, and what it became."""

  def __init__(self, index, name, providers, shares):
    self.index = index
    self.name = name  # mangled: Z_<name>_instance_t
    self.providers = providers  # modules of the script by number; -1: spectest
    self.shares = shares
    self.importers = 0


class Script:
  """One .wast on its way to C++."""

  def __init__(self, path, options, scratch):
    self.options = options
    self.scratch = scratch
    self.name = re.sub(r'\W', '_', pathlib.Path(path).stem)
    self.features = []
    if '/proposals/multi-memory/' in path:
      self.name = 'multi_memory_' + self.name
      self.features = ['--enable-multi-memory']
    self.modules = []
    self.by_name = {}  # of the script's names, and of registered ones
    self.headers = {}
    self.descriptions = []
    self.spectest = declarations(
        pathlib.Path(options.spectest).read_text(encoding='utf-8'))
    source = scratch / (self.name + '.wast')
    source.write_text(
        for_old_wabt(pathlib.Path(path).read_text(encoding='utf-8')),
        encoding='utf-8')
    self.json = scratch / (self.name + '.json')
    self.run('wast2json', *self.features, source, '-o', self.json)
    self.thunks = {}
    self.thunk_code = []
    self.bits = []
    self.wanted = []
    self.steps = []
    self.refused = 0

  def run(self, *command):
    done = subprocess.run([str(word) for word in command], capture_output=True,
                          text=True, check=False)
    if done.returncode != 0:
      raise Refused('%s: %s failed:\n%s%s' % (
          self.name, ' '.join(str(word) for word in command), done.stdout,
          done.stderr))

  def translate(self, filename):
    """Translates a module. Its imports have to have the types it wants."""
    index = len(self.modules)
    name = '%s_%d' % (self.name, index)
    wasm = self.scratch / filename
    raw = self.scratch / (name + '.raw')
    raw.mkdir(exist_ok=True)
    outputs = [raw / ('out' + end) for end in ('.firsttouch.h', '.h', '.c')]
    self.run(self.options.describe, '--check', wasm)
    self.run('wasm2c', *self.features, '--module-name=' + name, wasm, '-o',
             raw / (name + '.c'))
    self.run(self.options.describe, wasm, raw / (name + '.h'),
             raw / (name + '.c'), name + '.h', *outputs)
    description, header, code = (
        output.read_text(encoding='utf-8') for output in outputs)

    # An import's name stands for whatever is registered under it at the time.
    arguments = re.search(r'void Z_%s_instantiate\(([^)]*)\);' % name, header)[1]
    imports = re.findall(r'struct (Z_\w+)_instance_t\*', arguments)
    providers = []
    for imported in imports:
      if imported == 'Z_spectest':
        providers.append(-1)
        continue
      if imported not in self.by_name:
        raise Refused('%s: nobody is %s' % (name, imported))
      provider = self.by_name[imported]
      providers.append(provider.index)
      pattern = re.compile(r'\b%s(?=Z_|_instance)' % imported)
      description, header, code = (
          pattern.sub('Z_' + provider.name, text)
          for text in (description, header, code))
    declared = declarations(header)
    known = dict(self.spectest)
    for provider in providers:
      if provider >= 0:
        known.update(declarations(self.headers[provider]))
    for symbol, signature in declared.items():
      if not symbol.startswith('Z_%sZ_' % name) and not symbol.startswith(
          'Z_%s_' % name) and known.get(symbol) != signature:
        raise Refused('%s: %s is not as it is imported' % (name, symbol))
    fields = re.search(r'typedef struct Z_%s_instance_t \{(.*?)\n\}' % name,
                       header, re.S)[1]
    shares = any(not field.startswith('Z_spectestZ_')
                 for field in re.findall(r'^\s*\w+ \*(Z_\w+);$', fields, re.M))

    own_include = re.compile(r'^#include "[^"]*\b%s\.h"$' % name, re.M)
    (pathlib.Path(self.options.code) / (name + '.c')).write_text(
        own_include.sub(lambda _: header, code), encoding='utf-8')
    self.descriptions.append(own_include.sub(lambda _: header, description))
    module = Module(index, name, providers, shares)
    self.modules.append(module)
    self.headers[index] = header
    return module

  def thunk(self, module, action, results):
    """The name of a function that does the action."""
    parameters = [argument['type'] for argument in action.get('args', [])]
    key = (module.index, action['type'], action['field'], tuple(parameters),
           tuple(results))
    if key in self.thunks:
      return self.thunks[key]
    name = 'Call%d' % len(self.thunks)
    self.thunks[key] = name
    symbol = 'Z_%s%s' % (module.name, mangle(action['field']))
    instance = 'static_cast<Z_%s_instance_t*>(it)' % module.name
    if action['type'] == 'get':
      body = 'Put(*%s(%s), out);' % (symbol, instance)
    else:
      call = '%s(%s)' % (symbol, ', '.join([instance] + [
          'Get<%s>(in[%d])' % (TYPES[parameter][0], i)
          for i, parameter in enumerate(parameters)
      ]))
      if not results:
        body = call + ';'
      elif len(results) == 1:
        body = 'Put(%s, out);' % call
      else:
        # Fields are called by their type: i0, i1, or d0.
        body = 'const auto results = %s;' % call
        for i, result in enumerate(results):
          body += ' Put(results.%s%d, out + %d);' % (
              {'i32': 'i', 'i64': 'j', 'f32': 'f', 'f64': 'd', 'funcref': 'r',
               'externref': 'e'}[result], i, i)
    self.thunk_code.append(
        'static void %s([[maybe_unused]] void* it, [[maybe_unused]] const uint64_t* in,'
        '\n    [[maybe_unused]] uint64_t* out) {\n  %s\n}\n' % (name, body))
    return name

  @staticmethod
  def to_bits(value):
    """A value as bits; references to the host's objects count from one."""
    if value['value'] == 'null':
      return 0
    bits = int(value['value']) % 2**64
    return bits + 1 if value['type'] == 'externref' else bits

  def step(self, command, kind, module, trap='NONE'):
    """A command of the script as an initializer of a Step."""
    thunk, first_bit, first_wanted, count = 'nullptr', 0, 0, 0
    if 'action' in command:
      action = command['action']
      results = [value['type'] for value in command.get('expected', [])]
      thunk = self.thunk(module, action, results)
      first_bit = len(self.bits)
      self.bits += [self.to_bits(value) for value in action.get('args', [])]
      if kind == 'kReturns':
        first_wanted, count = len(self.wanted), len(results)
        for value in command['expected']:
          letter = TYPES[value['type']][1]
          text = value.get('value', '')
          if text == 'nan:canonical':
            self.wanted.append("{'%s', Match::kCanonicalNan, 0}" % letter)
          elif text == 'nan:arithmetic':
            self.wanted.append("{'%s', Match::kArithmeticNan, 0}" % letter)
          elif value['type'] == 'funcref' and text != 'null':
            self.wanted.append("{'r', Match::kNotNull, 0}")
          else:
            self.wanted.append("{'%s', Match::kBits, %du}" % (
                letter, self.to_bits(value)))
    self.steps.append(
        '{%d, StepKind::%s, %d, %s, kBits + %d, kWanted + %d, %d, '
        'WASM_RT_TRAP_%s}' % (command['line'], kind, module.index, thunk,
                              first_bit, first_wanted, count, trap))

  def untranslated(self, command):
    self.steps.append(
        '{%d, StepKind::kUntranslated, 0, nullptr, kBits, kWanted, 0, '
        'WASM_RT_TRAP_NONE}' % command['line'])

  def trap(self, command):
    for text, name in TRAPS.items():
      # Some scripts add which element it was.
      if command['text'].startswith(text):
        return name
    raise RuntimeError('%s:%d: no trap is known as %r' % (
        self.name, command['line'], command['text']))

  def command(self, command):
    kind = command['type']
    if kind in IGNORED:
      return
    if kind == 'register':
      self.by_name[mangle(command['as'])] = (
          self.by_name[command['name']] if 'name' in command
          else self.current)
      return
    if kind in ('module', 'assert_uninstantiable', 'assert_unlinkable'):
      try:
        module = self.translate(command['filename'])
      except Refused:
        if kind == 'assert_unlinkable':
          # C has no way to say it, wherever it stops.
          self.refused += 1
          return
        if kind != 'module':
          raise
        module = None
      if module is None:
        self.current = None
        self.untranslated(command)
      elif kind == 'module':
        self.current = module
        if 'name' in command:
          self.by_name[command['name']] = module
        self.step(command, 'kModule', module)
      elif kind == 'assert_unlinkable':
        self.step(command, 'kUnlinkable', module)
      else:
        self.step(command, 'kUninstantiable', module, self.trap(command))
      return
    module = self.current
    if 'module' in command['action']:
      module = self.by_name[command['action']['module']]
    if module is None:
      self.untranslated(command)
    elif kind == 'action':
      self.step(command, 'kAction', module)
    elif kind == 'assert_return':
      self.step(command, 'kReturns', module)
    elif kind in ('assert_trap', 'assert_exhaustion'):
      self.step(command, 'kTraps', module, self.trap(command))
    else:
      raise RuntimeError('%s:%d: no command is known as %r' % (
          self.name, command['line'], kind))

  def program(self):
    """Translates all, and gives the text of the program."""
    for command in json.loads(self.json.read_text(encoding='utf-8'))['commands']:
      self.command(command)
    modules = [
        '{"%s", &FaceOf<Z_%s_instance_t>::kFace, {%s}, %d, %s}' % (
            module.name, module.name,
            ', '.join(str(provider) for provider in module.providers),
            len(module.providers), 'true' if module.shares else 'false')
        for module in self.modules
    ]
    if not self.modules:
      raise RuntimeError('%s: it has no module to run' % self.name)
    space = 'script_' + self.name
    return '\n'.join(
        self.descriptions + ['namespace firsttouch::spec {', 'namespace %s {' % space] +
        self.thunk_code +
        ['constexpr uint64_t kBits[] = {%s};' % ', '.join(
            '%du' % bits for bits in self.bits + [0]),
         'constexpr Wanted kWanted[] = {\n%s};' % ',\n'.join(
             self.wanted + ["{'i', Match::kBits, 0}"]),
         'constexpr ScriptModule kModules[] = {\n%s};' % ',\n'.join(modules),
         'constexpr Step kSteps[] = {\n%s};' % ',\n'.join(self.steps),
         '}  // namespace %s' % space,
         'extern const Script %s;' % self.variable(),
         'const Script %s = {"%s", %s::kModules, %s::kSteps, %d};' % (
             self.variable(), self.name, space, space, self.refused),
         '}  // namespace firsttouch::spec', ''])

  def variable(self):
    return 'kScript_' + self.name


def main():
  parser = argparse.ArgumentParser()
  for option in ('describe', 'spectest', 'code', 'programs'):
    parser.add_argument('--' + option, required=True)
  parser.add_argument('scripts', nargs='+')
  options = parser.parse_args()
  options.describe = os.path.abspath(options.describe)

  with tempfile.TemporaryDirectory() as scratch:
    def translate(path):
      folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
      script = Script(path, options, folder)
      return script.variable(), script.program()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      scripts = list(pool.map(translate, options.scripts))
  programs = pathlib.Path(options.programs)
  include = '// Written by translate.py.\n#include "tests/spec_suite/spec_script.h"\n'
  # The templates of guest.h take longer to read than most scripts.
  for first in range(0, len(scripts), SCRIPTS_A_FILE):
    (programs / ('scripts_%d.cc' % (first // SCRIPTS_A_FILE))).write_text(
        include + ''.join(
            text for _, text in scripts[first:first + SCRIPTS_A_FILE]),
        encoding='utf-8')
  (programs / 'all_scripts.cc').write_text(
      include + 'namespace firsttouch::spec {\n' +
      ''.join('extern const Script %s;\n' % name for name, _ in scripts) +
      'std::vector<const Script*> AllScripts() {\n  return {%s};\n}\n' %
      ', '.join('&' + name for name, _ in scripts) +
      '}  // namespace firsttouch::spec\n', encoding='utf-8')


if __name__ == '__main__':
  try:
    main()
  except (Refused, RuntimeError) as error:
    sys.exit('translate.py: %s' % error)
