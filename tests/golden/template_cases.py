"""Templates in the style of the families that servers meet, and single constructs."""

MESSAGES = {
    "short": [{"role": "user", "content": "Hi"}],
    "system": [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "  Grüße, 世界 🎉 \n"},
        {"role": "assistant", "content": "Hello <b>there</b> & \"quotes\""},
        {"role": "user", "content": "Bye\n\n"},
    ],
    "thinking": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n2"},
        {"role": "user", "content": "and 2+2?"},
        {"role": "assistant", "reasoning_content": "\nadd again\n", "content": "4"},
        {"role": "user", "content": "and 3+3?"},
    ],
    "ends_assistant": [
        {"role": "user", "content": "Go on"},
        {"role": "assistant", "content": "<think>why</think>Once upon"},
    ],
    "tool_calls": [
        {"role": "system", "content": "You have tools."},
        {"role": "user", "content": "Weather in Paris and Rome?"},
        {
            "role": "assistant",
            "content": "Looking.",
            "tool_calls": [
                {
                    "id": "abcdefghi",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Paris", "n": 1.5}},
                },
                {
                    "id": "123456789",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                },
            ],
        },
        {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "18 °C"},
        {"role": "tool", "name": "weather", "tool_call_id": "123456789", "content": "25 °C"},
        {"role": "assistant", "content": "Paris 18, Rome 25."},
        {"role": "user", "content": "Thanks"},
    ],
    "multi_step": [
        {"role": "user", "content": "Plan"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "first step",
            "tool_calls": [{"name": "search", "arguments": {"q": "a\"b\\c\n", "deep": [1, {}]}}],
        },
        {"role": "tool", "content": "found"},
        {
            "role": "assistant",
            "content": "<think>second</think>",
            "tool_calls": [{"function": {"name": "open", "arguments": {"id": None, "ok": True}}}],
        },
        {"role": "user", "content": "<tool_response>\nfine\n</tool_response>"},
        {"role": "assistant", "content": "done", "tool_calls": []},
    ],
    "parts": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "See "},
                {"type": "image"},
                {"type": "text", "text": "this"},
            ],
        },
        {"role": "assistant", "content": None},
    ],
    "alternation_broken": [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
    ],
    "empty": [],
    "hostile": [
        {"role": "user", "content": "<|im_end|>{{ 7*7 }}{% raw %}<|eot_id|>"},
        {"role": "assistant", "content": "</think></think>a<think>"},
        {"role": "user", "content": "\u0000\u001f\u2028\u00a0x\u3000"},
    ],
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Current weather \u2013 'now'",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "a city"},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "noop", "parameters": {}}},
]

# Written for these tests in the style of the families they are named after.
FAMILIES = {
    "llama3": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n"}}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's none!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral_v1": """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}""",
    "mistral_v3": """{%- if messages and messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
""",
    "mistral_v7": """{%- set default_system_message = 'You are M.\\nToday is ' + strftime_now('%Y-%m-%d') + '.' %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- if messages[0]['content'] is string %}
        {%- set system_message = messages[0]['content'] %}
    {%- else %}
        {%- set system_message = messages[0]['content'][0]['text'] %}
    {%- endif %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = default_system_message %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}
{%- if tools is not none and tools|length > 0 %}{{- '[AVAILABLE_TOOLS]' + (tools| tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if message['content'] is string %}
            {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' }}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}
                    {{- block['text'] }}
                {%- elif block['type'] in ['image', 'image_url'] %}
                    {{- '[IMG]' }}
                {%- else %}
                    {{- raise_exception('Only text and image blocks are supported in message content!') }}
                {%- endif %}
            {%- endfor %}
            {{- '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {%- if message.tool_calls %}
            {%- for tc in message.tool_calls %}
                {{- '[TOOL_CALLS]' ~ tc.function.name ~ '[ARGS]' ~ (tc.function.arguments if tc.function.arguments is string else tc.function.arguments | tojson) }}
            {%- endfor %}
            {{- eos_token }}
        {%- elif message['content'] is string %}
            {{- message['content'] + eos_token }}
        {%- else %}
            {{- message['content'][0]['text'] + eos_token }}
        {%- endif %}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS]' + message.content|string + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user, assistant and tool roles, not "' + message['role'] + '"!') }}
    {%- endif %}
{%- endfor %}
""",
    "phi": """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}""",
    "gemma": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
""",
    "deepseek": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{{'<｜Assistant｜><｜tool▁calls▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments']|string + '\\n```<｜tool▁call▁end｜>'}}{%- set ns.is_first = true -%}{%- else %}{{'\\n' + tool['function']['name']}}{%- endif %}{%- endfor %}{%- elif message['role'] == 'assistant' %}{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<｜tool▁outputs▁begin｜>' + message['content']}}{%- set ns.is_output_first = false %}{%- else %}{{'\\n' + message['content']}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}""",
    "command_r": """{{ bos_token }}
{%- macro json_to_python_type(json_spec) %}
{%- set basic_type_map = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
{%- if basic_type_map[json_spec.type] is defined %}
    {{- basic_type_map[json_spec.type] }}
{%- elif json_spec.type == "array" %}
    {{- "List[" +  json_to_python_type(json_spec.items) + "]"}}
{%- elif json_spec.type == "object" %}
    {{- "Dict[str, " + json_to_python_type(json_spec.additionalProperties) + ']'}}
{%- elif json_spec.type is iterable %}
    {{- "Union[" }}
    {%- for t in json_spec.type %}
      {{- json_to_python_type({"type": t}) }}
      {%- if not loop.last %}{{- "," }}{%- endif %}
    {%- endfor %}
    {{- "]" }}
{%- else %}
    {{- "Any" }}
{%- endif %}
{%- endmacro %}
{%- macro old_tool_parser(tools) %}
{%- for tool in tools %}
    {%- if loop.index0 != 0 %}
        {{- '\\n\\n' }}
    {%- endif %}
    {{- '```python\\ndef ' + tool.function.name + '(' }}
    {%- for param_name, param_fields in tool.function.parameters.properties|items %}
        {%- if loop.index0 != 0 %}{{- ', '}}{%- endif %}
        {{- param_name + ": " }}
        {%- if not param_name in tool.function.parameters.required|default([]) %}
            {{- 'Optional[' + param_fields.type|replace("string", "str") + '] = None'}}
        {%- else %}
            {{- json_to_python_type(param_fields) }}
        {%- endif %}
    {%- endfor %}
    {{- ') -> List[Dict]:\\n    \"\"\"'}}
    {{- tool.function.description|default("none")|indent(4) }}
    {{- '\"\"\"\\n    pass\\n```' }}
{%- endfor %}
{%- endmacro %}
{% if messages and messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = 'None.' %}{% endif %}
{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message }}
{% if tools %}{{ old_tool_parser(tools) }}{% endif %}
{% for message in loop_messages %}
  {% set content = message['content'] %}
  {% if message.role == 'user' %}
{{ '<|USER_TOKEN|>' + (content if content is string else content|map(attribute='text', default='')|join) }}
  {%- elif message.role == 'assistant' %}
{{ '<|CHATBOT_TOKEN|>' }}{% generation %}{{ content|default('', true)|trim }}{% set leaked = 1 %}{% endgeneration %}{{ leaked is defined }}
  {%- endif %}
{% else %}nothing to say
{% endfor %}
""",
    "hermes": """{%- macro render_type(spec, depth=0) -%}
{%- if spec.type == 'object' -%}
{ {%- for name, prop in (spec.properties or {}) | dictsort %} {{ name }}{{ '?' if name not in (spec.required or []) }}: {{ render_type(prop, depth + 1) }}{{ ',' if not loop.last }}{% endfor -%} }
{%- elif spec.enum is defined -%}
{{ spec.enum | map('tojson') | join(' | ') }}
{%- elif spec.type == 'array' -%}
{{ render_type(spec['items'], depth=depth + 1) }}[]
{%- else -%}
{{ spec.type or 'any' }}
{%- endif -%}
{%- endmacro -%}
{{ bos_token }}<|im_start|>system
{% if tools is iterable and tools | length > 0 %}<tools>{% for tool in tools %}{% set fn = tool.function or tool %}{{ dict(name=fn.name, parameters=fn.parameters) | tojson(separators=(',', ':'), sort_keys=true) }}
{{ render_type(fn.parameters) }}
{% endfor %}</tools>{% endif %}<|im_end|>
{% for message in messages %}
{%- if message.role == "user" or message.role == "system" or (message.role == "assistant" and message.tool_calls is not defined) %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{%- elif message.role == "assistant" %}
<|im_start|>{{ message.role }}
{%- for tool_call in message.tool_calls %}
    {%- set tool_call = tool_call.function if tool_call.function is defined else tool_call %}

<tool_call>
{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{%- elif message.role == "tool" %}
{%- if loop.previtem and loop.previtem.role != "tool" %}
<|im_start|>tool
{%- endif %}
<tool_response>{{ message.content }}</tool_response>
{%- if not loop.last and loop.nextitem.role != "tool" %}<|im_end|>{% elif loop.last %}<|im_end|>{% endif %}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
}

CONSTRUCT_VARS = {
    "s": "Hello, Wörld",
    "e": "",
    "n": 7,
    "z": 0,
    "f": 2.5,
    "t": True,
    "no": None,
    "l": [3, 1, 2],
    "w": ["b", "A", "c", "a"],
    "d": {"b": 1, "a": [1, 2], "items": 5},
    "rows": [
        {"k": "x", "v": 3, "in": {"deep": 1}},
        {"k": "y", "v": 1},
        {"k": "X", "v": 2, "in": {"deep": 0}},
    ],
    "emoji": "a🎉é日本",
    "lines": "one\n\ntwo\r\nthree\n",
}

# One construct each; all compared with jinja2, errors included.
CONSTRUCTS = r"""
{{ 1 + 2 * 3 - 4 }} {{ 7 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }}
{{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 1.5 + 1 }} {{ 1e16 }} {{ 1e-5 }} {{ 0.1 + 0.2 }} {{ 1e15 }} {{ 100.0 }} {{ 5e-324 }}
{{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1_000 }} {{ 0x1F }} {{ 0o17 }} {{ 0b11 }} {{ 1e3 }} {{ 1.25e-7 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1.0 % 0 }}
{{ "a" + 1 }}
{{ 1 + "a" }}
{{ "a" ~ 1 ~ none ~ true ~ 1.0 ~ [1] }}
{{ "ab" * 3 }}{{ 3 * "ab" }}{{ [1] * 2 }}{{ "x" * -1 }}
{{ [1, 2] + [3] }} {{ (1, 2) + (3,) }} {{ [1] + (2,) }}
{{ true + true }} {{ -true }} {{ +5 }} {{ - 5 }} {{ --5 }}
{{ -"a" }}
{{ not 1 }} {{ not not 0 }} {{ 1 and 2 }} {{ 0 or "x" }} {{ 0 and 1/0 }} {{ none or false }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 == true }} {{ "a" < "b" }} {{ [1, 2] < [1, 3] }} {{ (1,) == [1] }}
{{ 1 < "a" }}
{{ none < 1 }}
{{ "a" in "abc" }} {{ "" in "" }} {{ 1 in [1.0] }} {{ "a" not in {"a": 1} }} {{ 2 in (1, 2) }} {{ "x" in missing }}
{{ 1 in "abc" }}
{{ 1 in 5 }}
{{ missing }}|{{ missing is defined }}|{{ missing.x is defined }}
{{ missing.x }}
{{ missing["x"] }}
{{ missing() }}
{{ missing + 1 }}
{{ "x" + missing }}
{{ missing ~ "x" }}{{ missing == missing }}{{ missing == none }}{{ not missing }}{{ missing | length }}
{{ s.nothing }}|{{ d.nothing }}|{{ d["nothing"] }}|{{ n.x }}|{{ no.x }}|{{ no["x"] }}|{{ l[10] }}|{{ l["x"] }}|{{ l[-4] }}
{{ d.nothing.more }}
{{ d.items }}
{{ d["items"] }} {{ d.a }} {{ d.get("b") }} {{ d.get("q") }} {{ d.get("q", 5) }}
{{ d.keys() }} {{ d.values() }} {{ d.items() }} {{ d.keys() | list }} {{ d | length }} {{ d }}
{{ s[0] }}{{ s[-1] }}{{ s[8] }} {{ s[1:4] }} {{ s[::-1] }} {{ s[::2] }} {{ s[-3:] }} {{ s[5:2] }}|{{ s[100:] }}|{{ s[:-100] }}
{{ emoji[1] }}{{ emoji[-1] }}{{ emoji[::-1] }}{{ emoji | length }}{{ emoji[1:3] }}{{ emoji[4:0:-2] }}
{{ l[::-1] }} {{ l[1:] }} {{ l[:1] }} {{ l[-2:] }} {{ (1, 2, 3)[1:] }} {{ range(10)[2:8:3] | list }}
{{ l[::0] }}
{{ l["a":] }}
{{ d[1:] }}
{{ missing[1:] }}
{{ (1) }} {{ (1,) }} {{ () }} {{ (1, 2) }} {{ 1, 2 }} {{ [] }} {{ {} }} {{ [1, "a", none, true, 1.0, missing] }}
{{ {"a": 1, "b": {"c": []}} }} {{ {1: 2, none: 3, true: 4} }} {{ {"a": 1, "a": 2} }}
{{ {[1]: 2} }}
{{ "it's" }} {{ ["it's"] }} {{ ['"'] }} {{ ["'\""] }} {{ ["\n\t\\\x00\x7fé\u200b🎉"] }}
{{ "a\nb\t\"\'\\\x41\u00e9\101\q" }} {{ 'con' "cat" }} {{ '\
joined' }}
{{ "yes" if t else "no" }} {{ "yes" if z }} {{ 1 if z else 2 if e else 3 }} {{ ("a" if t else "b") ~ "c" }}
{{ n if n is defined else 0 }} {{ x if x is defined else 0 }}
{{ n is odd }} {{ n is even }} {{ n is divisibleby 7 }} {{ n is divisibleby(2) }} {{ "3" is odd }}
{{ n is number }} {{ t is number }} {{ t is boolean }} {{ t is integer }} {{ n is integer }} {{ f is float }} {{ s is string }} {{ s is mapping }} {{ d is mapping }} {{ l is sequence }} {{ d is sequence }} {{ n is sequence }} {{ s is iterable }} {{ n is iterable }} {{ missing is iterable }} {{ no is none }} {{ no is not none }} {{ t is true }} {{ 1 is true }} {{ z is false }} {{ false is false }}
{{ "a" is in ["a"] }} {{ 3 is in l }} {{ s is eq s }} {{ 1 is equalto 1 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 1 is greaterthan 2 }} {{ "A" is upper }} {{ "a" is lower }} {{ range is callable }} {{ s is callable }} {{ none is sameas none }} {{ "tojson" is filter }} {{ "nope" is filter }} {{ 'x' is not defined }}
{{ n is nonsense }}
{{ n | nonsense }}
{{ s | upper }} {{ s | lower }} {{ s | title }} {{ "hELLO wORLD-foo (bar" | title }} {{ s | capitalize }} {{ "straße" | upper }} {{ "ΑΣ" | lower }}
{{ "  x " | trim }}|{{ "xxaxx" | trim("x") }}|{{ 5 | trim }}|{{ missing | trim }}|{{ "\u00a0\u3000a\u2028" | trim }}
{{ s | length }} {{ l | count }} {{ n | length }}
{{ s | replace("l", "L") }} {{ s | replace("l", "L", 1) }} {{ "aaa" | replace("aa", "b") }} {{ "abc" | replace("", "-") }} {{ 55 | replace(5, 6) }}
{{ l | join }} {{ l | join(", ") }} {{ rows | join("|", attribute="k") }} {{ s | join("-") }} {{ missing | join }} {{ [1, none, [2]] | join(" ") }}
{{ n | join }}
{{ l | first }} {{ l | last }} {{ [] | first }} {{ s | first }} {{ s | last }} {{ emoji | last }} {{ d | first }} {{ d | last }}
{{ n | first }}
{{ l | sort }} {{ w | sort }} {{ w | sort(case_sensitive=true) }} {{ w | sort(reverse=true) }} {{ rows | sort(attribute="v") | map(attribute="k") | list }} {{ rows | sort(attribute="k,v") | map(attribute="v") | join }} {{ s | sort | join }}
{{ [1, "a"] | sort }}
{{ l | reverse | list }} {{ s | reverse }} {{ n | reverse }}
{{ l | min }} {{ l | max }} {{ w | min }} {{ w | max }} {{ rows | max(attribute="v") }} {{ [] | max }} {{ [1, 2.5] | sum }} {{ rows | sum(attribute="v") }} {{ rows | sum("v", 10) }}
{{ ["a"] | sum }}
{{ w | unique | list }} {{ [1, 1.0, 2] | unique | list }} {{ ["a", "A"] | unique(case_sensitive=true) | list }}
{{ d | dictsort }} {{ {"b": 1, "A": 2, "a": 3} | dictsort }} {{ {"b": 1, "A": 2} | dictsort(true) }} {{ {"b": 1, "a": 2} | dictsort(by="value") }} {{ {"b": 1, "a": 2} | dictsort(reverse=true) }}
{{ d | dictsort(by="nope") }}
{{ l | dictsort }}
{% for k, v in d | items %}{{ k }}={{ v }};{% endfor %}{% for k in missing | items %}x{% endfor %}
{{ l | items | list }}
{{ rows | map(attribute="in.deep") | list }} {{ rows | map(attribute="in.deep", default=9) | list }} {{ w | map("upper") | join }} {{ l | map("string") | list }} {{ [[1, 2], [3]] | map(attribute=0) | list }} {{ [[1, 2]] | map("join", "+") | list }}
{{ rows | map(attribute="missing.deep") | list }}
{{ l | map | list }}
{{ l | map("nope") | list }}
{{ l | select("odd") | list }} {{ l | reject("gt", 1) | list }} {{ [0, 1, "", "a"] | select | list }} {{ [0, 1] | reject | list }} {{ rows | selectattr("v", "ge", 2) | map(attribute="k") | list }} {{ rows | selectattr("in") | list | length }} {{ rows | rejectattr("k", "in", ["x"]) | map(attribute="k") | list }} {{ rows | selectattr("in", "defined") | list | count }} {{ rows | selectattr("k", "==", "y") | first }}
{{ l | select("odd") | length }}
{{ (l | select("odd"))[0] }}
{% set g = l | select("odd") %}{{ g | list }}{{ g | list }}{{ "t" if g }}
{{ l | tojson }} {{ d | tojson }} {{ s | tojson }} {{ s | tojson(ensure_ascii=true) }} {{ emoji | tojson(true) }} {{ [1.0, 1e20, none, true, "\u2028</script>&'"] | tojson }} {{ {1: 2, none: 1, true: 0, 1.5: 3} | tojson }}
{{ d | tojson(indent=2) }} {{ [] | tojson(indent=2) }} {{ {"b": [1, {"c": {}}], "a": []} | tojson(indent=4, sort_keys=true) }} {{ d | tojson(separators=(",", ":")) }} {{ (1, 2) | tojson }} {{ d | tojson(indent="--") }} {{ d | tojson(false, 1) }} {{ [1] | tojson(indent=0) }}
{{ missing | tojson }}
{{ range(3) | tojson }}
{{ d.keys() | tojson }}
{{ '{"a": [1, 2.50, "x\\u00e9\\ud83c\\udf89", null, true, -0, 1e2]}' | from_json }}
{{ '{"a": }' | from_json }}
{{ missing | default("x") }} {{ e | default("x") }} {{ e | default("x", true) }} {{ no | default("x") }} {{ missing | d }} {{ z | d("y", boolean=true) }} {{ missing | default(default_value="q") }}
{{ "12" | int }} {{ " 12 " | int }} {{ "x" | int }} {{ "x" | int(5) }} {{ "1.9" | int }} {{ 3.9 | int }} {{ -3.9 | int }} {{ "0x1A" | int(0, 16) }} {{ "11" | int(base=2) }} {{ none | int }} {{ [] | int }} {{ true | int }} {{ "1_0" | int }} {{ "" | int }} {{ "1e3" | int }}
{{ "1.5" | float }} {{ "x" | float }} {{ 3 | float }} {{ "1e400" | float }} {{ "nan" | float }} {{ none | float(1.0) }}
{{ missing | int }}
{{ -5 | abs }} {{ 5.5 | abs }} {{ -1.5 | round }} {{ 2.5 | round }} {{ 2.675 | round(2) }} {{ 42 | round }} {{ 42.55 | round(1, "floor") }} {{ 42.1 | round(method="ceil") }} {{ 12.5 | round | int }}
{{ "a" | abs }}
{{ lines | indent }}|{{ lines | indent(2, true) }}|{{ lines | indent(width=2, blank=true) }}|{{ lines | indent(">") }}|{{ "" | indent }}|{{ "a" | indent(first=true) }}
{{ "<b>" | escape }} {{ "<b>" | safe }} {{ ("<" | safe) + "<" }} {{ "<a href='x\"'>&" | e }} {{ "<" | e | e }} {{ ["<" | safe] }}
{{ s | string }} {{ 5 | string + "x" }} {{ [1] | string }} {{ d | list }} {{ s | list }} {{ n | list }}
{{ "%s is %d, %.2f, %5s|%-5s|%05d|%x|%r|%%" | format("a", 3, 2.5, "r", "l", 42, 255, "q") }} {{ "%(a)s" | format(a=1) }} {{ "%s" % "x" }} {{ "%s-%s" % (1, 2) }}
{{ "%s" | format }}
{{ "%s" % (1, 2) }}
{{ "%d" % "x" }}
{{ "{} {1}".format(1, 2) }}
{{ "{}-{}".format(1, "b") }} {{ "{0}{1}{0}".format("a", "b") }} {{ "{x}".format(x=5) }} {{ "{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}|{:x}".format("r", "l", "c", 42, 3.14159, 1234567, 255) }} {{ "{{}}".format() }} {{ "{d[a]}{r.k}".format(d=d, r=rows[0]) }} {{ "{!r}".format("x") }} {{ "{:*^9}".format("mid") }} {{ "{:+}".format(5) }}
{{ "{}".format() }}
{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ s.capitalize() }} {{ s.swapcase() }} {{ "they're bill's".title() }}
{{ s.split(", ") }} {{ "a b  c ".split() }} {{ "a,b,c".split(",", 1) }} {{ "a b c d".split(none, 2) }} {{ "".split() }} {{ "".split(",") }} {{ "a,b,c".rsplit(",", 1) }} {{ " a b c ".rsplit(none, 1) }} {{ "a,b".split(sep=",", maxsplit=1) }} {{ "a b ".split(maxsplit=1) }} {{ lines.splitlines() }} {{ lines.splitlines(true) }}
{{ "a".split("") }}
{{ " x ".strip() }}|{{ " x ".lstrip() }}|{{ " x ".rstrip() }}|{{ "xaxbx".strip("xa") }}|{{ "\nab\n".strip("\n") }}|{{ "日a日".strip("日") }}|{{ " x ".strip(none) }}
{{ s.startswith("He") }} {{ s.endswith("ld") }} {{ s.startswith(("a", "H")) }} {{ s.startswith("ello", 1) }} {{ "".startswith("") }} {{ s.endswith("x") }}
{{ s.startswith(1) }}
{{ s.replace("l", "_") }} {{ s.replace("l", "_", 1) }} {{ "ab".replace("", ".") }} {{ "abab".replace("ab", "") }}
{{ s.find("o") }} {{ s.rfind("o") }} {{ s.find("zz") }} {{ s.index("o") }} {{ s.count("l") }} {{ "aaa".count("aa") }} {{ "aaa".rfind("aa") }} {{ s.find("o", 5) }} {{ emoji.find("日") }} {{ "abc".find("") }} {{ "abc".count("") }}
{{ s.index("zz") }}
{{ ",".join(["a", "b"]) }} {{ ",".join("abc") }} {{ ",".join(d) }}
{{ ",".join([1]) }}
{{ "ab".ljust(4) }}|{{ "ab".rjust(4, ".") }}|{{ "ab".center(5, "*") }}|{{ "abc".center(6) }}|{{ "7".zfill(3) }}|{{ "-7".zfill(4) }}|{{ "x" | center(5) }}|
{{ "123".isdigit() }} {{ "".isdigit() }} {{ "a1".isalnum() }} {{ "ab".isalpha() }} {{ " ".isspace() }} {{ "AB".isupper() }} {{ "ab1".islower() }} {{ "a=b=c".partition("=") }} {{ "a=b=c".rpartition("=") }} {{ "abc".partition("x") }} {{ "abc".rpartition("x") }} {{ "prefix-x".removeprefix("prefix-") }} {{ "a.py".removesuffix(".py") }}
{{ l.index(1) }} {{ l.count(3) }} {{ (1, 2).index(2) }}
{{ l.index(9) }}
{{ l.nope() }}
{{ s() }}
{{ s.upper(1) }}
{{ s.__class__ }}|{{ d.__len__ is defined }}
{{ range(3) }} {{ range(1, 7, 2) | list }} {{ range(3, 0, -1) | list }} {{ range(0) | list }} {{ range(5)[1] }} {{ range(5) | length }} {{ 3 in range(5) }} {{ range(5) | last }}
{{ range() }}
{{ range(1, 2, 0) }}
{{ range("a") }}
{{ dict(a=1, b=2) }} {{ dict({"x": 1}, y=2) }} {{ dict([("a", 1)]) }} {{ dict() }}
{{ strftime_now("%d %b %Y|%Y-%m-%d|%H:%M:%S|%B %A|%y|%j|%%|%p") }}
{{ raise_exception("No way: ümlaut 'x' {1}") }}
{% if n > 5 %}big{% elif n > 3 %}mid{% else %}small{% endif %} {% if not n %}a{% endif %}
{% for x in l %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.index0 }},{{ loop.previtem }}<{{ loop.nextitem }};{% endfor %}
{% for x in [] %}x{% else %}none{% endfor %} {% for x in [1] %}x{% else %}none{% endfor %} {% for x in missing %}x{% else %}none{% endfor %}
{% for x in n %}x{% endfor %}
{% for x in none %}x{% endfor %}
{% for k, v in d.items() %}{{ k }}:{{ v }} {% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in emoji %}[{{ c }}]{% endfor %}
{% for a, b in [[1, 2], [3]] %}{{ a }}{% endfor %}
{% for a, b in [1] %}{{ a }}{% endfor %}
{% for x in l if x != 1 %}{{ x }}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% else %}e{% endfor %} {% for x in l if x > 9 %}{{ x }}{% else %}e{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{% if x is sequence %}[{{ loop(x) }}]{% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}
{% for x in l %}{{ loop.cycle("a", "b") }}{{ loop.changed(x > 1) }}{% endfor %}{% for x in l %}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}
{{ loop }}{{ loop is defined }}
{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if t %}{% set x = 2 %}{% endif %}{{ x }}{% for i in l %}{{ y }}{% set y = i %}{% endfor %}{{ y }}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set c = 1, 2 %}{{ c }} {% set (p, q) = "xy" %}{{ p }}{{ q }}
{% set a, b = 1, 2, 3 %}
{% set ns = namespace(c=0, d="x") %}{% for i in l %}{% set ns.c = ns.c + i %}{% set ns.new = i %}{% endfor %}{{ ns.c }}{{ ns.d }}{{ ns.new }}{{ ns["c"] }}{{ ns.missing }}|{{ ns.missing is defined }}
{% set ns = namespace({"a": 1}) %}{{ ns.a }}{% set ns.a = [ns.a, 2] %}{{ ns.a }}
{% set q = 1 %}{% set q.x = 2 %}
{% set d.x = 2 %}
{% set nope.x = 2 %}
{% set block %}a{{ n }}b{% endset %}{{ block }}{{ block | length }} {% set b2 | upper | trim %} x{% endset %}[{{ b2 }}]
{% filter upper %}ab{{ n }}{{ s }}{% endfilter %} {% filter replace("a", "b") | indent(2) %}aa
a{% endfilter %}
{% macro m(a, b=2, c=a) %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(1, c=4) }} {{ m(b=1, a=0) }} {{ m() }}|{{ m.name }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }} {{ m() }}
{% macro outer(x) %}{% macro inner(y) %}{{ x }}{{ y }}{% endmacro %}{{ inner(2) }}{% endmacro %}{{ outer(1) }}
{% macro fact(k) %}{% if k <= 1 %}1{% else %}{{ k * fact(k - 1) | int }}{% endif %}{% endmacro %}{{ fact(10) }}
{% macro m() %}{{ late }}{% endmacro %}{% set late = 5 %}{{ m() }}{% set late = 6 %}{{ m() }}
{% macro wrap(x) %}<{{ x }}>{{ caller(x + 1) }}</{{ x }}>{% endmacro %}{% call(y) wrap(1) %}body {{ y }}{{ n }}{% endcall %} {% macro w2() %}[{{ caller() }}]{% endmacro %}{% call w2() %}x{% endcall %}
{% macro c() %}{{ caller is defined }}{% endmacro %}{{ c() }}
{% macro c() %}{{ caller() }}{% endmacro %}{{ c() }}
{% with a = 1, b = n %}{{ a }}{{ b }}{% set z2 = 3 %}{{ z2 }}{% endwith %}{{ a }}{{ z2 }} {% with %}{{ n }}{% endwith %}
{% raw %}{{ not }} {% this %}{% endraw %}|{%- raw -%}  x {{ }}  {%- endraw -%}  |
a {# comment {{ x }} {% y %} #} b {#- c -#}  d
{% generation %}g{{ n }}{% set inner = 1 %}{% endgeneration %}{{ inner }}
{{ "{{" }} {{ '%}' }} {{ "#}" }} {{ {"a": {"b": 1}}["a"]["b"] }} {{ {'x': {}} }}
{{ [1, 2, 3,] }} {{ (1, 2,) }} {{ {"a": 1,} }} {{ m | default("x",) }}
{{ s.split(", ")[0].upper() | lower | replace("h", "j") }} {{ (1, 2) | first }} {{ l.0 }} {{ rows[0].in.deep }} {{ rows.0.k }}
{{ d.items() | list | length }} {{ d.items() | first }} {{ d.keys() | join(",") }} {{ "b" in d.keys() }} {{ d.items()[0] }}|
{{ namespace }}{{ 1 if namespace is callable }}
{{ 9223372036854775807 }} {{ -9223372036854775807 }}
{{ 1 is not odd }} {{ not 1 is odd }} {{ 1 is odd and 2 is even }} {{ 1 in [1] and not 2 in [1] }} {{ 1 == 1 and 2 != 1 }}
{{ n is odd or x }} {{ s is string and s | length > 3 }} {{ s | length + 1 }} {{ 2 * l | length }} {{ -1 | abs }} {{ 5 ~ 3 | string }}
{{ *l }}
{{ dict(**d) }} {{ [1, *l] }}
{{ "%s %s" | format(*w) }}
{% macro m(a, b, c) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(*l) }} {{ m(1, **{"b": 2, "c": 3}) }}
{% if %}{% endif %}
{% for %}{% endfor %}
{% endfor %}
{% if 1 %}
{% for x in l %}
{{ 1 +
{{ "abc
{{ 1 }
{% set x %}
{% unknown %}
{{ a b }}
{{ (1 }}
{{ [1 }}
{{ 1) }}
{{ . }}
{{ 1 is }}
{{ s | }}
{{ f(a=1, 2) }}
{% break %}
{# open
{% raw %} open
{% macro m(a=1, b) %}{% endmacro %}
{% set 1 = 2 %}
{% set true = 2 %}
{% for true in l %}{% endfor %}
{{ true }} {{ True }} {{ false }} {{ none }} {{ None }}
{{ l | batch(2) | list }} {{ l | batch(2, 0) | list }} {{ l | slice(2) | list }} {{ rows | groupby("k") | list | length }} {% for g, items in rows | groupby("k") %}{{ g }}{{ items | length }}{% endfor %} {{ s | wordcount }} {{ "a long text that is cut somewhere" | truncate(15) }} {{ "abcdefghijklmnop" | truncate(8, true, "!", 0) }}
{{ rows[0] | attr("k") }}|{{ s | attr("upper") is defined }} {% set j = joiner("; ") %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}
{{ [1, 2] == [1, 2.0] }} {{ {"a": 1} == {"a": 1.0} }} {{ "1" == 1 }} {{ none == false }} {{ (1, 2) == (1, 2) }} {{ d == d }} {{ missing == "" }}
{{ "a" "b" ~ "c" }} {{ 3.0 }} {{ 3.0 | string }} {{ 1e100 }} {{ 123456789.123456789 }} {{ 1.0e+2 }}
""".strip().split("\n")

# Several lines each: white-space control.
WHITESPACE = [
    "a\n{% if true %}\nb\n{% endif %}\nc\n",
    "a\n  {% if true %}\n  b\n  {% endif %}\n  c\n\n",
    "a  {% if true %}  \nb{% endif %}   c",
    "a\n  {%+ if true %}\nb\n  {%- endif %}\nc",
    "a\n  {%- if true -%}\n  b\n  {%- endif -%}\n  c",
    "  {{ 1 }}  \n  {{- 2 -}}  \n  {{ 3 }}\n",
    "{% if true +%}\na{% endif %}",
    "  {# c #}\nx\n  {#- c -#}\n  y {#+ c +#}\nz",
    "\n\n{% set x = 1 %}\n\n{{ x }}\n\n",
    "a\r\nb\rc\n{% if true %}\r\nd{% endif %}\r\n",
    "x {% raw %}\n  y{% endraw %}\nz",
    "x\n  {% raw %}\n  y\n  {% endraw %}\nz",
    "x\n  {%- raw -%}\n  y\n  {%- endraw -%}\nz",
    "\t {% for x in [1,2] %}\t\n\t{{ x }}\n\t{% endfor %}\t\n",
    "\u3000{% if true %}x{% endif %}\u3000{%- if true %} y{% endif %}",
    "{%- for x in [1] -%} {{ x }} {%- endfor -%} ",
    "{{ '\n' }}\n{{ 'x\n' }}\n\n",
    "a{%- set x = 1 %}\n   {% set y = 2 %}\n\n   b",
    "{{-1}} {{ -1}} {{+1}}",
    "",
    "\n",
    "{",
    "{ { % }",
    "{{ 1 }}{",
    "{%if true%}x{%endif%}",
    "{% if true: %}x{% endif %}",
]
