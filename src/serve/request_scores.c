/*
 * request_scores.c - the tasks that read log-probabilities instead of text.
 *
 *	score, filter	the probability that the answer to a question begins with one of the config's
 *					yes words, among those that begin with a yes or a no word
 *	classify		the label that is most likely the whole answer, its end token included, to
 *					the config's classify prompt; ties to the first. The answer is the label
 *					itself, or what the config's classify_answer makes of it
 *	classify_multi	every label whose own question gets a score of the threshold at least
 *
 * All are continuations of one prompt, scored together (scoring.h). What they continue is what all
 * have in common, prompt and answer together: with classify_multi the prompt up to the label,
 * the rest of which belongs to the continuation though only the word behind it counts. What
 * answers have in common multiplies all their probabilities alike, and changes no verdict.
 */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "request_internal.h"
#include "request_labels.h"
#include "scoring.h"

/* A yes or no word as the answer's first tokens. */
typedef struct ScoreWord
{
	TokenList	ids;
	bool		yes;
} ScoreWord;

typedef struct ScorePlan
{
	LabelList	labels;			/* of classify and classify_multi */
	ScoreWord  *words;			/* of the others and classify_multi */
	int			word_count;
	Continuation *continuations;	/* one for each label, or one for each word of each question */
	int			count;
	Scoring		scoring;
	Generation	generation;
} ScorePlan;

bool
scores_wanted(const Request *request)
{
	return request->kind == WIRE_KIND_SCORE || request->kind == WIRE_KIND_FILTER ||
		request->kind == WIRE_KIND_CLASSIFY || request->kind == WIRE_KIND_CLASSIFY_MULTI;
}

/* ---- yes and no words ---- */

/* Whether an answer that begins with the word begins with one of the same verdict before it too. */
static bool
is_covered(const ScoreWord *words, int count, const ScoreWord *word)
{
	for (int i = 0; i < count; i++)
		if (words[i].yes == word->yes && words[i].ids.count <= word->ids.count &&
			memcmp(words[i].ids.ids, word->ids.ids,
				   (size_t) words[i].ids.count * sizeof(int32_t)) == 0)
			return true;
	return false;
}

/* Drop the words that a shorter one, or the same one earlier, covers: they count once. */
static void
drop_covered(ScorePlan *plan)
{
	int			kept = 0;

	for (int i = 0; i < plan->word_count; i++)
	{
		ScoreWord	word = plan->words[i];

		if (is_covered(plan->words, kept, &word))
			continue;
		/* those kept so far that this one covers */
		for (int j = kept - 1; j >= 0; j--)
			if (is_covered(&word, 1, &plan->words[j]))
				memmove(&plan->words[j], &plan->words[j + 1],
						(size_t) (--kept - j) * sizeof(ScoreWord));
		plan->words[kept++] = word;
	}
	plan->word_count = kept;
}

/* Token ids of the config's words behind the prompt; it is the same for any prompt. */
static bool
encode_words(Request *request, ScorePlan *plan)
{
	const ModelContext *context = request->context;
	const WordList *lists[2] = {&context->config->prompts.yes_words,
		&context->config->prompts.no_words};
	size_t		most = (size_t) (lists[0]->count + lists[1]->count);

	plan->words = arena_take_array(request->arena, most, sizeof(ScoreWord));
	if (plan->words == NULL)
		return status_out_of_memory(&request->status, most * sizeof(ScoreWord));
	for (int list = 0; list < 2; list++)
		for (int i = 0; i < lists[list]->count; i++)
		{
			ScoreWord  *word = &plan->words[plan->word_count];
			const char *text = lists[list]->words[i];

			word->yes = list == 0;
			token_list_begin(&word->ids, request->arena);
			if (!prompt_encode_answer(context->tokenizer, &context->prompt_template,
									  &request->dialogue, (TextPart) {text, strlen(text)},
									  &word->ids, &request->status))
				return false;
			if (word->ids.count > 0)
				plan->word_count++;
		}
	drop_covered(plan);
	return plan->word_count > 0 ||
		status_set(&request->status, STATUS_INVALID_MODEL,
				   "the config's yes_words and no_words have no tokens");
}

/* ---- prompts and continuations ---- */

static bool
take_continuations(Request *request, ScorePlan *plan, int count, int each)
{
	plan->continuations = arena_take_array(request->arena, (size_t) count * (size_t) each,
										   sizeof(Continuation));
	return plan->continuations != NULL ||
		status_out_of_memory(&request->status, (size_t) count * (size_t) each *
							 sizeof(Continuation));
}

/* Add the words behind the rest of a question's prompt as continuations. */
static bool
add_words(Request *request, ScorePlan *plan, const int32_t *rest, int rest_count)
{
	for (int i = 0; i < plan->word_count; i++)
	{
		const TokenList *word = &plan->words[i].ids;
		size_t		count = (size_t) rest_count + (size_t) word->count;
		int32_t    *ids = arena_take_array(request->arena, count, sizeof(int32_t));

		if (ids == NULL)
			return status_out_of_memory(&request->status, count * sizeof(int32_t));
		memcpy(ids, rest, (size_t) rest_count * sizeof(int32_t));
		memcpy(ids + rest_count, word->ids, (size_t) word->count * sizeof(int32_t));
		plan->continuations[plan->count++] = (Continuation) {
			.ids = ids, .count = (int) count, .scored = word->count
		};
	}
	return true;
}

/* A condition: a question or statement put into the filter prompt. */
static bool
prepare_condition(Request *request, ScorePlan *plan)
{
	const PromptConfig *prompts = &request->context->config->prompts;
	TextPart	condition = request_text_field(request, WIRE_FIELD_PROMPT);
	TextPart	prompt;

	if (condition.text == NULL)
		return status_set(&request->status, STATUS_PROTOCOL, "a request without a prompt");
	return request_fill_prompt(request, prompts->filter, condition, &prompt) &&
		request_encode_prompt(request, prompt, &request->ids) &&
		encode_words(request, plan) &&
		take_continuations(request, plan, 1, plan->word_count) &&
		add_words(request, plan, request->ids.ids, 0);
}

/* A label as the model says it, and the end token, as the whole answer. */
static bool
add_label(Request *request, ScorePlan *plan, TextPart label)
{
	const ModelContext *context = request->context;
	TextPart	answer;
	TokenList	ids;

	token_list_begin(&ids, request->arena);
	if (!request_fill_prompt(request, context->config->prompts.classify_answer, label, &answer) ||
		!prompt_encode_answer(context->tokenizer, &context->prompt_template, &request->dialogue,
							  answer, &ids, &request->status) ||
		!token_list_add(&ids, context->config->eos, &request->status))
		return false;
	plan->continuations[plan->count++] = (Continuation) {
		.ids = ids.ids, .count = ids.count, .scored = ids.count
	};
	return true;
}

static bool
prepare_classify(Request *request, ScorePlan *plan)
{
	TextPart	joined;
	TextPart	prompt;

	if (!labels_join(request, &plan->labels, &joined) ||
		!request_fill_prompt(request, request->context->config->prompts.classify, joined,
							 &prompt) ||
		!request_encode_prompt(request, prompt, &request->ids) ||
		!take_continuations(request, plan, plan->labels.count, 1))
		return false;
	for (int i = 0; i < plan->labels.count; i++)
		if (request_given_up(request) || !add_label(request, plan, plan->labels.labels[i]))
			return false;
	return true;
}

/* The ids of one label's question, asked like a condition. */
static bool
encode_question(Request *request, TextPart label, TokenList *ids)
{
	const PromptConfig *prompts = &request->context->config->prompts;
	TextPart	question;
	TextPart	prompt;

	return !request_given_up(request) &&
		request_fill_prompt(request, prompts->classify_multi, label, &question) &&
		request_fill_prompt(request, prompts->filter, question, &prompt) &&
		request_encode_prompt(request, prompt, ids);
}

/* How many of the first `most` ids are the same in both. */
static int
common_ids(const int32_t *a, const int32_t *b, int most)
{
	int			same = 0;

	while (same < most && a[same] == b[same])
		same++;
	return same;
}

/* Move what all continuations begin with behind the prompt; each keeps a token at least. */
static bool
share_beginning(Request *request, ScorePlan *plan)
{
	const int32_t *first = plan->continuations[0].ids;
	int			common = plan->continuations[0].count - 1;

	for (int i = 1; i < plan->count; i++)
	{
		const Continuation *other = &plan->continuations[i];

		common = common_ids(first, other->ids,
							other->count - 1 < common ? other->count - 1 : common);
	}
	for (int i = 0; i < common; i++)
		if (!token_list_add(&request->ids, first[i], &request->status))
			return false;
	for (int i = 0; i < plan->count; i++)
	{
		Continuation *continuation = &plan->continuations[i];

		continuation->ids += common;
		continuation->count -= common;
		if (continuation->scored > continuation->count)
			continuation->scored = continuation->count;
	}
	return true;
}

static bool
prepare_classify_multi(Request *request, ScorePlan *plan)
{
	TokenList  *prompts = arena_take_array(request->arena, (size_t) plan->labels.count,
										   sizeof(TokenList));
	int			common = INT_MAX;

	if (prompts == NULL)
		return status_out_of_memory(&request->status,
									(size_t) plan->labels.count * sizeof(TokenList));
	for (int i = 0; i < plan->labels.count; i++)
	{
		if (!encode_question(request, plan->labels.labels[i], &prompts[i]))
			return false;
		common = common_ids(prompts[0].ids, prompts[i].ids,
							prompts[i].count < common ? prompts[i].count : common);
	}
	if (!encode_words(request, plan) ||
		!take_continuations(request, plan, plan->labels.count, plan->word_count))
		return false;
	for (int i = 0; i < plan->labels.count; i++)
		if (!add_words(request, plan, prompts[i].ids + common, prompts[i].count - common))
			return false;
	request->ids = prompts[0];
	request->ids.count = common;
	return true;
}

/* All tokens but the last of each continuation have to fit the context behind the prompt. */
static bool
check_room(Request *request, const ScorePlan *plan)
{
	int			context = request->context->config->decoder.context;

	for (int i = 0; i < plan->count; i++)
	{
		int			tokens = request->ids.count + plan->continuations[i].count - 1;

		if (tokens <= context)
			continue;
		if (plan->labels.count == 0)
			status_set(&request->status, STATUS_PROMPT_TOO_LONG,
					   "prompt and yes or no word of %d tokens do not fit the model's context of "
					   "%d tokens", tokens, context);
		else
			status_set(&request->status, STATUS_PROMPT_TOO_LONG,
					   "prompt and label %d of %d tokens do not fit the model's context of %d "
					   "tokens", i / (plan->count / plan->labels.count) + 1, tokens, context);
		return status_hint(&request->status, "Shorten the label, the prompt or the input.");
	}
	return true;
}

bool
scores_prepare(Request *request)
{
	ScorePlan  *plan = arena_take(request->arena, sizeof(ScorePlan));
	bool		good;

	if (plan == NULL)
		return status_out_of_memory(&request->status, sizeof(ScorePlan));
	if (request->kind == WIRE_KIND_SCORE || request->kind == WIRE_KIND_FILTER)
		good = prepare_condition(request, plan);
	else
		good = labels_read(request, &plan->labels) &&
			(request->kind == WIRE_KIND_CLASSIFY ? prepare_classify(request, plan)
												 : prepare_classify_multi(request, plan));
	if (!good || !check_room(request, plan) || !share_beginning(request, plan) ||
		!scoring_begin(&plan->scoring, plan->continuations, plan->count, request->arena,
					   &request->status))
		return false;
	/* of all options only the threshold counts, beside those of the prompt */
	request->options.max_tokens = 1;
	request->options.temperature = 0;
	request->options.num_beams = 1;
	request->scores = plan;
	return true;
}

/* ---- results ---- */

/* p(yes) / (p(yes) + p(no)) of a question, from the words' continuations. */
static double
question_score(const ScorePlan *plan, int question)
{
	const Continuation *words = plan->continuations + question * plan->word_count;
	double		largest = -INFINITY;
	double		yes = 0;
	double		no = 0;

	for (int i = 0; i < plan->word_count; i++)
		if (words[i].sum > largest)
			largest = words[i].sum;
	for (int i = 0; i < plan->word_count; i++)
		*(plan->words[i].yes ? &yes : &no) += exp(words[i].sum - largest);
	return yes / (yes + no);
}

static void
write_score(Request *request)
{
	double		score = question_score(request->scores, 0);

	if (!request_begin_answer(request, WIRE_REQUEST_OVERHEAD))
		return;
	wire_write_f64(&request->answer, WIRE_FIELD_REAL, score);
	wire_write_u32(&request->answer, WIRE_FIELD_BOOLEAN, score >= request->options.threshold);
}

static void
write_label(Request *request)
{
	const ScorePlan *plan = request->scores;
	int			best = 0;

	for (int i = 1; i < plan->count; i++)
		if (plan->continuations[i].sum > plan->continuations[best].sum)
			best = i;
	if (request_begin_answer(request, WIRE_REQUEST_OVERHEAD))
		wire_write_i64(&request->answer, WIRE_FIELD_INTEGER, best);
}

static void
write_labels(Request *request)
{
	const ScorePlan *plan = request->scores;
	size_t		size = (size_t) plan->labels.count * sizeof(uint32_t);
	uint32_t   *places = arena_take(request->arena, size);
	size_t		count = 0;

	if (places == NULL)
	{
		status_out_of_memory(&request->status, size);
		return;
	}
	for (int i = 0; i < plan->labels.count; i++)
		if (question_score(plan, i) >= request->options.threshold)
			places[count++] = (uint32_t) i;
	if (request_begin_answer(request, size + WIRE_REQUEST_OVERHEAD))
		wire_write_bytes(&request->answer, WIRE_FIELD_PLACES, places, count * sizeof(uint32_t));
}

static void
scores_finished(Generation *generation, void *argument)
{
	Request    *request = argument;

	if (generation->finish == FINISH_FAILED)
		request->status = generation->status;
	else if (generation->finish == FINISH_CANCELLED)
		;						/* nobody waits for an answer */
	else if (request->kind == WIRE_KIND_CLASSIFY)
		write_label(request);
	else if (request->kind == WIRE_KIND_CLASSIFY_MULTI)
		write_labels(request);
	else
		write_score(request);
	request_complete(request);
}

void
request_submit_scoring(Request *request, Scoring *scoring, Generation *generation,
					   void (*finished)(Generation *generation, void *argument))
{
	if (!generation_begin(generation, request->arena, request->context->config, request->ids.ids,
						  request->ids.count,
						  request->pictures.count > 0 ? &request->pictures : NULL,
						  &request->options, &request->status))
	{
		request_complete(request);
		return;
	}
	generation->scoring = scoring;
	generation->session = request->session;
	generation->owner = request->owner;
	generation->cancelled = &request->cancelled;
	generation->finished = finished;
	generation->argument = request;
	scheduler_submit(request->scheduler, generation);
}

void
scores_submit(Request *request)
{
	ScorePlan  *plan = request->scores;

	request_submit_scoring(request, &plan->scoring, &plan->generation, scores_finished);
}
