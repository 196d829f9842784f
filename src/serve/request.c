/*
 * request.c - fields of a frame to a request, and the part of it that is done on a preparer
 * thread; see request.h.
 */
#include "request_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "model_text.h"
#include "pixel_cache.h"
#include "request_training.h"
#include "utf8.h"

/* mmgpt.max_image_pixels, where a request does not tell. */
#define DEFAULT_MAX_PIXELS UINT64_C(100000000)
/* mmgpt_count's answers are short; so design says. */
#define COUNT_MAX_TOKENS 32
/* Ranges of mmgpt.max_tokens and mmgpt.temperature. */
#define MAX_TOKENS 1000000
#define MAX_TEMPERATURE 100.0

Request *
request_create(uint64_t id, uint8_t *payload, size_t size, void *connection)
{
	Request    *request = calloc(1, sizeof(Request));

	if (request != NULL)
		request->arena = arena_create();
	if (request == NULL || request->arena == NULL)
	{
		free(request);
		return NULL;
	}
	request->id = id;
	request->payload = payload;
	request->payload_size = size;
	request->connection = connection;
	request->received_ns = clock_now_ns();
	status_clear(&request->status);
	if (!wire_fields_read(payload, size, &request->fields, &request->status))
		return request;
	request->kind = (WireKind) wire_get_u32(&request->fields, WIRE_FIELD_KIND, 0);
	request->owner = (uint64_t) wire_get_u32(&request->fields, WIRE_FIELD_DATABASE, 0) << 32 |
		wire_get_u32(&request->fields, WIRE_FIELD_ROLE, 0);
	request->alone = (wire_get_u32(&request->fields, WIRE_FIELD_FLAGS, 0) & WIRE_FLAG_ALONE) != 0;
	if (request->kind < WIRE_KIND_CHAT || request->kind > WIRE_KIND_LAST)
	{
		status_set(&request->status, STATUS_PROTOCOL, "unknown kind of request %d",
				   (int) request->kind);
		status_hint(&request->status,
					"The library may be newer than the engine: run SELECT mmgpt_restart().");
	}
	else
		request_read_adapter(request);
	return request;
}

void
request_free(Request *request)
{
	if (request == NULL)
		return;
	request_drop_files(request);
	arena_free(request->arena);
	free(request->payload);
	free(request);
}

bool
request_needs_model(const Request *request)
{
	return request->kind != WIRE_KIND_IMAGE_INFO && request->kind != WIRE_KIND_STATUS &&
		request->kind != WIRE_KIND_VERSION;
}

bool
request_is_computed(const Request *request)
{
	return request_needs_model(request) && !request_is_training(request) &&
		request->kind != WIRE_KIND_TOKEN_COUNT && request->kind != WIRE_KIND_ADAPTER_CHECK &&
		request->kind != WIRE_KIND_TRAIN_ENCODE;
}

bool
request_begin_answer(Request *request, size_t size)
{
	void	   *buffer = arena_take(request->arena, size);

	if (buffer == NULL)
		return status_out_of_memory(&request->status, size);
	wire_writer_begin(&request->answer, buffer, size);
	request->answered = true;
	return true;
}

static void
describe_image(Request *request)
{
	ImageInfo	info;
	json_t	   *root;
	char	   *text;

	if (!wire_has(&request->fields, WIRE_FIELD_IMAGE))
	{
		status_set(&request->status, STATUS_PROTOCOL, "a request without an image");
		return;
	}
	if (!image_read_info(request->fields.bytes[WIRE_FIELD_IMAGE],
						 request->fields.length[WIRE_FIELD_IMAGE], &info, &request->status))
		return;
	root = json_pack("{s:s, s:i, s:i, s:i, s:s, s:i, s:i, s:I}", "format",
					 info.format == IMAGE_JPEG ? "jpeg" : "png", "width", info.width, "height",
					 info.height, "channels", info.channels, "color", info.color, "bits", info.bits,
					 "orientation", info.orientation, "bytes", (json_int_t) info.bytes);
	text = json_dumps(root, JSON_COMPACT);
	if (text != NULL && request_begin_answer(request, strlen(text) + WIRE_REQUEST_OVERHEAD))
		wire_write_bytes(&request->answer, WIRE_FIELD_JSON, text, strlen(text));
	else if (text == NULL)
		status_out_of_memory(&request->status, 0);
	free(text);
	json_decref(root);
}

/* ---- what a model needs to know ---- */

/* Whether a piece is made of ASCII digits only, maybe behind SentencePiece's mark for a space. */
static bool
is_number_piece(const char *piece, bool may_begin)
{
	static const char space_mark[] = "\xE2\x96\x81";
	size_t		digits;

	if (may_begin && strncmp(piece, space_mark, sizeof(space_mark) - 1) == 0)
		piece += sizeof(space_mark) - 1;
	digits = strspn(piece, "0123456789");
	return digits > 0 && piece[digits] == '\0';
}

bool
model_context_create(ModelContext *context, const ModelConfig *config, const Tokenizer *tokenizer,
					 Arena *arena, Status *status)
{
	size_t		words = ((size_t) config->decoder.vocabulary + 31) / 32;

	*context = (ModelContext) {.config = config, .tokenizer = tokenizer};
	context->prompt_template = model_text_template(config);
	context->digits_first = arena_take_array(arena, words, sizeof(uint32_t));
	context->digits_rest = arena_take_array(arena, words, sizeof(uint32_t));
	if (context->digits_first == NULL || context->digits_rest == NULL)
		return status_out_of_memory(status, 2 * words * sizeof(uint32_t));
	for (int32_t id = 0; id < tokenizer_base_vocabulary(tokenizer); id++)
	{
		const char *piece = tokenizer_is_special(tokenizer, id) ? ""
																: tokenizer_piece(tokenizer, id);

		if (is_number_piece(piece, true))
			context->digits_first[id / 32] |= 1u << (id % 32);
		if (is_number_piece(piece, false) || id == config->eos)
			context->digits_rest[id / 32] |= 1u << (id % 32);
	}
	return true;
}

/* ---- preparing ---- */

bool
request_given_up(Request *request)
{
	if (!atomic_load(&request->cancelled))
		return false;
	status_set(&request->status, STATUS_CANCELLED, "request was cancelled");
	return true;
}

TextPart
request_text_field(const Request *request, WireField field)
{
	TextPart	part = {(const char *) request->fields.bytes[field], request->fields.length[field]};

	return part;
}

/*
 * Settings come from a backend that checked them; a peer that did not must not reach the
 * arithmetic.
 */
static bool
check_settings(Request *request)
{
	const RequestOptions *options = &request->options;

	if (options->max_tokens >= 1 && options->max_tokens <= MAX_TOKENS &&
		options->temperature >= 0 && options->temperature <= MAX_TEMPERATURE &&
		options->top_k >= 0 && options->top_p > 0 && options->top_p <= 1 &&
		options->num_beams >= 1 && options->num_beams <= OPTIONS_MAX_BEAMS)
		return true;
	status_set(&request->status, STATUS_INVALID_ARGUMENT,
			   "a setting of the request is out of range");
	return status_detail(&request->status, "max_tokens is %d, temperature %g, top_k %d, top_p %g.",
						 options->max_tokens, options->temperature, options->top_k, options->top_p);
}

static bool
read_options(Request *request)
{
	const WireFields *fields = &request->fields;
	RequestOptions *options = &request->options;
	TextPart	json = request_text_field(request, WIRE_FIELD_OPTIONS);

	request_options_defaults(options);
	options->max_tokens = (int) wire_get_u32(fields, WIRE_FIELD_MAX_TOKENS,
											 (uint32_t) options->max_tokens);
	options->temperature = wire_get_f64(fields, WIRE_FIELD_TEMPERATURE, options->temperature);
	options->top_k = (int) wire_get_u32(fields, WIRE_FIELD_TOP_K, (uint32_t) options->top_k);
	options->top_p = wire_get_f64(fields, WIRE_FIELD_TOP_P, options->top_p);
	options->has_seed = wire_has(fields, WIRE_FIELD_SEED);
	options->seed = wire_get_i64(fields, WIRE_FIELD_SEED, 0);
	if (!check_settings(request))
		return false;
	options->num_beams = (int) wire_get_u32(fields, WIRE_FIELD_NUM_BEAMS, 1);
	if (!request_options_read(json.text, json.length, false, request->arena, options,
							  &request->status))
		return false;
	/* the backend looks up the name; nobody else's may pass as "no adapter" */
	if (options->adapter_name != NULL && options->adapter_name[0] != '\0' &&
		!request->wants_adapter)
		return status_set(&request->status, STATUS_PROTOCOL,
						  "a request names adapter \"%.64s\" without its digest",
						  options->adapter_name);
	if (!options->logprobs || request->kind == WIRE_KIND_CHAT_TURN)
		return true;
	status_set(&request->status, STATUS_INVALID_ARGUMENT,
			   "option \"logprobs\" needs an answer that is JSON");
	return status_hint(&request->status, "Use mmgpt_chat_turn.");
}

bool
request_fill_prompt(Request *request, const char *pattern, TextPart value, TextPart *prompt)
{
	const char *place = strstr(pattern, "{}");
	size_t		before = place == NULL ? strlen(pattern) : (size_t) (place - pattern);
	size_t		after = place == NULL ? 0 : strlen(place + 2);
	char	   *text = arena_take(request->arena, before + value.length + after + 1);

	if (text == NULL)
		return status_out_of_memory(&request->status, before + value.length + after);
	memcpy(text, pattern, before);
	prompt->text = text;
	prompt->length = before;
	if (place == NULL)
		return true;
	if (value.length > 0)
		memcpy(text + before, value.text, value.length);
	memcpy(text + before + value.length, place + 2, after);
	prompt->length = before + value.length + after;
	return true;
}

static bool
caption_prompt(Request *request, const PromptConfig *prompts, TextPart detail, TextPart *prompt)
{
	bool		brief = detail.length == 5 && memcmp(detail.text, "brief", 5) == 0;

	if (!brief && (detail.length != 8 || memcmp(detail.text, "detailed", 8) != 0))
	{
		status_set(&request->status, STATUS_INVALID_ARGUMENT, "unknown detail \"%.*s\"",
				   (int) (detail.length < 40 ? detail.length : 40), detail.text);
		return status_hint(&request->status, "Use brief or detailed.");
	}
	prompt->text = brief ? prompts->caption_brief : prompts->caption_detailed;
	prompt->length = strlen(prompt->text);
	return true;
}

/* What the model is asked, by the kind of the request. */
static bool
choose_prompt(Request *request, const ModelConfig *config, TextPart *prompt)
{
	TextPart	given = request_text_field(request, WIRE_FIELD_PROMPT);

	if (given.text == NULL)
		return status_set(&request->status, STATUS_PROTOCOL, "a request without a prompt");
	switch (request->kind)
	{
		case WIRE_KIND_CAPTION:
			return caption_prompt(request, &config->prompts, given, prompt);
		case WIRE_KIND_COUNT:
			request->options.temperature = 0;
			request->options.num_beams = 1;
			request->options.no_repeat_ngram_size = 0;
			request->options.stop_count = 0;
			request->options.max_tokens = COUNT_MAX_TOKENS;
			return request_fill_prompt(request, config->prompts.count, given, prompt);
		default:
			*prompt = given;
			return true;
	}
}

void
request_set_picture(Request *request, const ModelConfig *config, const uint8_t *pixels)
{
	size_t		side = (size_t) config->vision.image_size;
	DigestState state;

	request->picture.pixels = pixels;
	request->pictures.pictures = &request->picture;
	request->pictures.count = 1;
	/* encoded pictures are shared between the requests of one role in one database only */
	digest_begin(&state);
	digest_add(&state, &request->owner, sizeof(request->owner));
	digest_add(&state, pixels, side * side * 3);
	digest_end(&state, request->pictures.key);
	request->pictures.has_key = true;
}

bool
request_read_pixels(Request *request, const ModelConfig *config, ImageRules rules,
					uint8_t **pixels)
{
	TextPart	image = request_text_field(request, WIRE_FIELD_IMAGE);
	ImageLimits limits = {
		wire_get_u64(&request->fields, WIRE_FIELD_MAX_PIXELS, DEFAULT_MAX_PIXELS)};
	size_t		side = (size_t) config->vision.image_size;
	Arena	   *scratch = arena_create();
	bool		good;

	*pixels = arena_take(request->arena, side * side * 3);
	good = *pixels != NULL && scratch != NULL;
	if (!good)
		status_out_of_memory(&request->status, side * side * 3);
	else
		good = image_preprocess(image.text, image.length, rules, &limits, (int) side, scratch,
								*pixels, &request->status);
	arena_free(scratch);
	return good;
}

/* The key of the request's file in the cache of pixels; the same whenever it is read alike. */
static void
digest_file(const Request *request, uint8_t key[DIGEST_SIZE])
{
	TextPart	image = request_text_field(request, WIRE_FIELD_IMAGE);
	uint64_t	read[2] = {request->owner, wire_get_u64(&request->fields, WIRE_FIELD_MAX_PIXELS,
														DEFAULT_MAX_PIXELS)};
	DigestState state;

	digest_begin(&state);
	digest_add(&state, read, sizeof(read));
	digest_add(&state, image.text, image.length);
	digest_end(&state, key);
}

/* Find the picture where it was read before. */
static bool
find_picture(Request *request, PixelCache *cache, const ModelConfig *config,
			 const uint8_t key[DIGEST_SIZE])
{
	size_t		side = (size_t) config->vision.image_size;
	uint8_t    *pixels = arena_take(request->arena, side * side * 3);

	if (pixels == NULL || !pixel_cache_find(cache, key, pixels, request->pictures.key))
		return false;
	request->picture.pixels = pixels;
	request->pictures.pictures = &request->picture;
	request->pictures.count = 1;
	request->pictures.has_key = true;
	return true;
}

static bool
prepare_picture(Request *request, const ModelConfig *config)
{
	PixelCache *cache = request->owner == 0 ? NULL : request->context->pixels;
	uint8_t		key[DIGEST_SIZE];
	uint8_t    *pixels;

	if (!wire_has(&request->fields, WIRE_FIELD_IMAGE))
		return true;
	if (cache != NULL)
	{
		digest_file(request, key);
		if (find_picture(request, cache, config, key))
			return true;
	}
	if (!request_read_pixels(request, config, IMAGE_RULES_DISPLAY, &pixels))
		return false;
	request_set_picture(request, config, pixels);
	if (cache != NULL)
		pixel_cache_keep(cache, key, pixels, request->pictures.key);
	return true;
}

#ifdef MMGPT_FAULTS
/* Do what a test asked for. */
static bool
inject_fault(Request *request)
{
	const struct timespec pause = {0, 10000000};

	if (request->options.fault == FAULT_ABORT)
		abort();
	while (request->options.fault == FAULT_HANG && !atomic_load(&request->cancelled))
		nanosleep(&pause, NULL);
	if (request->options.fault == FAULT_OUT_OF_MEMORY)
		return status_out_of_memory(&request->status, SIZE_MAX);
	return true;
}
#endif

static void
count_tokens(Request *request, const ModelContext *context)
{
	TextPart	text = request_text_field(request, WIRE_FIELD_PROMPT);

	if (text.text == NULL)
	{
		status_set(&request->status, STATUS_PROTOCOL, "a request without a text");
		return;
	}
	token_list_begin(&request->ids, request->arena);
	if (tokenizer_encode_plain(context->tokenizer, text.text, text.length, &request->ids,
							   &request->status) &&
		request_begin_answer(request, WIRE_REQUEST_OVERHEAD))
		wire_write_i64(&request->answer, WIRE_FIELD_INTEGER, request->ids.count);
}

bool
request_answer_without_model(Request *request, const ModelContext *context)
{
	if (request->kind == WIRE_KIND_IMAGE_INFO)
		describe_image(request);
	else if (request->kind == WIRE_KIND_TOKEN_COUNT)
		count_tokens(request, context);
	else if (request->kind == WIRE_KIND_ADAPTER_CHECK)
		request_check_adapter(request, context);
	else if (request->kind == WIRE_KIND_TRAIN_ENCODE)
		request_encode_row(request, context);
	else
		return false;
	return true;
}

/* A prompt that can't fit in any case costs no encoding. */
static bool
check_length(Request *request, const ModelContext *context)
{
	int			least = prompt_fewest_tokens(context->tokenizer, &request->dialogue);
	int			room = context->config->decoder.context - 1;

	if (least <= room)
		return true;
	status_set(&request->status, STATUS_PROMPT_TOO_LONG,
			   "prompt of at least %d tokens does not fit the model's context of %d tokens", least,
			   room + 1);
	return status_hint(&request->status, "Shorten the prompt, the history or the input.");
}

bool
request_encode_prompt(Request *request, TextPart prompt, TokenList *ids)
{
	const ModelContext *context = request->context;
	TextPart	history = request_text_field(request, WIRE_FIELD_HISTORY);
	TextPart	input = {request->options.input, request->options.input_length};

	token_list_begin(ids, request->arena);
	return dialogue_read(history.text, history.length, prompt, input,
						 wire_has(&request->fields, WIRE_FIELD_IMAGE), request->arena,
						 &request->dialogue, &request->status) &&
		   check_length(request, context) &&
		   prompt_encode(context->tokenizer, &context->prompt_template, &request->dialogue, ids,
						 &request->status);
}

bool
request_prepare(Request *request, const ModelContext *context)
{
	TextPart	prompt;

	request->context = context;
	if (!read_options(request))
		return false;
#ifdef MMGPT_FAULTS
	if (!inject_fault(request))
		return false;
#endif
	if (request->kind == WIRE_KIND_EVALUATE)
		return evaluate_prepare(request);
	if (scores_wanted(request))
	{
		if (!scores_prepare(request))
			return false;
	}
	else if (!choose_prompt(request, context->config, &prompt) ||
			 !request_encode_prompt(request, prompt, &request->ids))
		return false;
	return prepare_picture(request, context->config);
}
